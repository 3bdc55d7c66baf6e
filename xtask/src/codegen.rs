//! `cargo xtask codegen`: what `crates/grpc` is built from, made from `proto/`.
//!
//! The result is committed, so that a build needs neither this nor a protobuf compiler.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use protox::Compiler;

use crate::workspace;

const PROTO: &str = "proto";
const GENERATED: &str = "crates/grpc/src/generated";
/// What reflection serves: every file with its imports, without comments.
const DESCRIPTORS: &str = "descriptors.bin";

/// A file of the folder [`GENERATED`].
struct Generated {
    name: String,
    bytes: Vec<u8>,
}

/// Writes the generated files; with `check`, fails if that would change anything.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = workspace::root();
    let files = generate(&root.join(PROTO))?;
    let folder = root.join(GENERATED);
    let outdated = outdated(&folder, &files)?;
    if check && !outdated.is_empty() {
        bail!("{GENERATED} is not what {PROTO} says ({}): run `cargo xtask codegen`", outdated.join(", "));
    }
    if !check {
        write(&folder, &files, &outdated)?;
    }
    println!("codegen: {} files, {} outdated", files.len(), outdated.len());
    Ok(())
}

/// The files that `proto` says, in the order of their names.
fn generate(proto: &Path) -> Result<Vec<Generated>> {
    let sources = sources(proto)?;
    let mut compiler = Compiler::new([proto])?;
    // Its `Display` leaves out the file and the line.
    compiler.include_imports(true).open_files(sources).map_err(|error| anyhow!("{error:?}"))?;
    let descriptors = compiler.encode_file_descriptor_set();
    // The comments, for the documentation of the generated code.
    compiler.include_source_info(true);
    let scratch = tempfile::tempdir().context("no folder for the generated code")?;
    json(tonic_prost_build::configure())
        .out_dir(scratch.path())
        // The order of a map is then the same each time, and so are the bytes.
        .btree_map(".")
        .build_transport(false)
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())
        .context("the Rust code could not be generated")?;
    let mut files = vec![Generated { name: DESCRIPTORS.into(), bytes: descriptors }];
    for name in names(scratch.path())? {
        let bytes = fs::read(scratch.path().join(&name))?;
        files.push(Generated { name, bytes });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// With the feature `serde`, messages serialise to the JSON shapes that the HTTP API has.
fn json(builder: tonic_prost_build::Builder) -> tonic_prost_build::Builder {
    let serde = |what: &str| format!("#[cfg_attr(feature = \"serde\", serde({what}))]");
    let name = |of: &str| serde(&format!("serialize_with = \"crate::json::{of}\""));
    let some = serde("skip_serializing_if = \"Option::is_none\"");
    let flatten = serde("flatten");
    let fields = [
        ("Health.overall", name("health_state")),
        ("ComponentHealth.status", name("health_state")),
        ("ComponentHealth.rate", some.clone()),
        ("ComponentHealth.count", some.clone()),
        ("Metrics.metrics", flatten.clone()),
        ("Trace.status", name("trace_status")),
        ("TraceFilter.status", name("trace_status")),
        ("Span.status", name("trace_status")),
        ("Span.kind", name("span_kind")),
        ("ChaosStatus.mode", name("chaos_mode")),
        ("ChaosStatus.off", some.clone()),
        ("ChaosTest.status", name("chaos_test_status")),
        ("ChaosTestDetails.parameters", name("parameters")),
        ("ChaosTestDetails.error", some.clone()),
        ("ChaosTestDetails.report", some.clone()),
        ("ChaosReport.status", name("chaos_test_status")),
        ("ChaosReport.error", some.clone()),
        ("ChaosReport.started_by", name("chaos_started_by")),
        ("ChaosReport.parameters", name("parameters")),
        ("ChaosReport.guard", some.clone()),
        ("ChaosReport.replay", some.clone()),
        ("ChaosReport.samples", serde("skip_serializing_if = \"Vec::is_empty\"")),
        ("ChaosReport.outages", serde("skip_serializing_if = \"Vec::is_empty\"")),
        ("ChaosAudit.before", some.clone()),
        ("ChaosAudit.after", some.clone()),
        ("ChaosFootprint.children", flatten.clone()),
        ("ChaosFootprint.descriptors", some.clone()),
        ("ChaosFootprint.memory_bytes", some.clone()),
        ("ChaosChild.role", name("chaos_child_role")),
        ("ChaosChildRole.kind", name("chaos_child_role_kind")),
        ("ChaosSlot.sample", flatten.clone()),
        ("ChaosInjection.resource", some.clone()),
        ("ChaosInjection.packets", some.clone()),
        ("ChaosAchieved.unit", name("chaos_unit")),
        ("ChaosAchieved.cgroup", some.clone()),
        ("ChaosPoint.sample", flatten.clone()),
        ("ChaosOutlook.crash", some.clone()),
        ("ChaosOutlook.resource", some.clone()),
        ("ChaosOutlook.packets", some.clone()),
        ("ChaosCrashOutlook.rate", some.clone()),
        ("ChaosProcessOutlook.components", serde("skip_serializing_if = \"Vec::is_empty\"")),
        ("ChaosProcessOutlook.pid", some.clone()),
        ("ChaosProcessOutlook.program", some.clone()),
        ("ChaosProcessOutlook.group", some.clone()),
        ("ChaosProcessOutlook.restarted_after", some.clone()),
        ("ChaosResourceOutlook.unit", name("chaos_unit")),
        ("ChaosResourceOutlook.cores", some.clone()),
        ("ChaosResourceOutlook.limit", some.clone()),
        ("ChaosResourceOutlook.cgroup", some.clone()),
        ("ChaosSample.p50_ms", some.clone()),
        ("ChaosSample.p95_ms", some.clone()),
        ("ChaosSample.p99_ms", some.clone()),
        ("ChaosSample.healthy", some.clone()),
        ("ChaosSample.repeated", some.clone()),
        ("ChaosSample.duplicates", some.clone()),
        ("ChaosSample.touched", some.clone()),
        ("ChaosTouched.p50_ms", some.clone()),
        ("ChaosTouched.p95_ms", some.clone()),
        ("ChaosTouched.p99_ms", some.clone()),
        ("ChaosHit.direction", some.clone()),
        ("ChaosHit.kind", some.clone()),
        ("ChaosHit.method", some.clone()),
        ("ChaosHit.tool", some.clone()),
        ("ChaosHit.amount", some.clone()),
        ("ChaosEvent.what", flatten),
        ("ChaosChanged.status", name("chaos_test_status")),
        ("ChaosChanged.reason", some.clone()),
        ("ChaosRefused.parameters", name("parameters")),
        ("ChaosRefused.by", name("chaos_started_by")),
        ("ChaosStopped.cause", name("chaos_cause")),
        ("ChaosCause.kind", name("chaos_cause_kind")),
        ("ChaosPlanReplaced.mode", name("chaos_mode")),
        ("ChaosPlanReplaced.off", some),
        ("PlanRequest.parameters", name("parameters")),
        ("StartExperimentRequest.parameters", name("parameters")),
    ];
    let derive = "#[cfg_attr(feature = \"serde\", derive(serde::Serialize))]";
    let tagged = serde("tag = \"event\", rename_all = \"snake_case\"");
    let with = builder
        .message_attribute(".mcpscope.v1", derive)
        .enum_attribute(".mcpscope.v1.ChaosEvent.what", format!("{derive}\n{tagged}"));
    // Without the package, a path is that field alone, and not what lies under a oneof as well.
    fields.into_iter().fold(with, |builder, (field, attribute)| builder.field_attribute(field, attribute))
}

/// All `.proto` files under `folder`, sorted.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for name in names(folder)? {
        let path = folder.join(name);
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    Ok(found)
}

/// What lies in `folder`, sorted; nothing if it does not exist.
fn names(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| format!("{} could not be read", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The names of the files in `folder` that are missing, different or too many.
fn outdated(folder: &Path, files: &[Generated]) -> Result<Vec<String>> {
    let differs = |file: &&Generated| fs::read(folder.join(&file.name)).ok().as_ref() != Some(&file.bytes);
    let mut names: Vec<_> = files.iter().filter(differs).map(|file| file.name.clone()).collect();
    names.extend(self::names(folder)?.into_iter().filter(|name| files.iter().all(|file| file.name != *name)));
    Ok(names)
}

/// Brings the `outdated` files of `folder` up to date.
fn write(folder: &Path, files: &[Generated], outdated: &[String]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{} could not be created", folder.display()))?;
    for name in outdated {
        let path = folder.join(name);
        let done = match files.iter().find(|file| file.name == *name) {
            Some(file) => fs::write(&path, &file.bytes),
            None => fs::remove_file(&path),
        };
        done.with_context(|| format!("{} could not be changed", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str =
        "syntax = \"proto3\";\npackage a.v1;\n// A comment.\nmessage One { map<string, int64> by_name = 1; }\n";

    fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn a_package_becomes_one_file_with_its_comments() {
        let proto = folder_with(&[("a/v1/one.proto", MESSAGE), ("README.md", "not a source")]);
        let files = generate(proto.path()).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a.v1.rs", DESCRIPTORS]);
        let code = String::from_utf8(files[0].bytes.clone()).unwrap();
        assert!(code.contains("/// A comment.\n") && code.contains("BTreeMap"), "{code}");
        let descriptors = String::from_utf8_lossy(&files[1].bytes);
        assert!(descriptors.contains("a/v1/one.proto") && !descriptors.contains("A comment"), "{descriptors}");
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let proto = folder_with(&[("a.proto", "syntax = \"proto3\";\nmessage One { Two two = 1; }\n")]);
        let error = generate(proto.path()).map(|files| files.len()).unwrap_err().to_string();
        assert!(error.contains("a.proto:2:15") && error.contains("Two"), "{error}");
    }

    #[test]
    fn what_is_missing_different_or_too_many_is_told_and_mended() {
        let folder = folder_with(&[("same.rs", "1"), ("different.rs", "1"), ("old.rs", "1")]);
        let file = |name: &str, text: &str| Generated { name: name.into(), bytes: text.into() };
        let files = [file("different.rs", "2"), file("new.rs", "2"), file("same.rs", "1")];
        let told = outdated(folder.path(), &files).unwrap();
        assert_eq!(told, ["different.rs", "new.rs", "old.rs"]);
        write(folder.path(), &files, &told).unwrap();
        assert_eq!(outdated(folder.path(), &files).unwrap(), [""; 0]);
        assert_eq!(names(folder.path()).unwrap(), ["different.rs", "new.rs", "same.rs"]);
    }
}
