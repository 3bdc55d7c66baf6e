//! `cargo xtask bench`: the benchmarks are whatever bench targets the manifests declare.

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Metadata;

use crate::command::{self, cargo};
use crate::test_env::{Need, TestEnv};
use crate::workspace;

struct Bench {
    package: String,
    name: String,
}

impl Bench {
    /// The programs that it needs, such as peers that are no crates.
    fn needs(&self) -> &'static [Need] {
        match (self.package.as_str(), self.name.as_str()) {
            ("mcpscope", "proxy") => &[Need::Nginx, Need::Haproxy],
            ("mcpscope", "instructions") => &[Need::Valgrind],
            _ => &[],
        }
    }
}

/// Prints the benchmarks of the workspace.
pub(crate) fn list() -> Result<()> {
    let benches = benches(&workspace::metadata(&workspace::root().join("Cargo.toml"))?);
    if benches.is_empty() {
        println!("no crate declares a bench target");
    }
    for bench in benches {
        println!("{:<16} {}", bench.name, bench.package);
    }
    Ok(())
}

/// Runs the benchmark that `wanted` names.
pub(crate) fn run(wanted: &str, args: &[String]) -> Result<()> {
    let root = workspace::root();
    let benches = benches(&workspace::metadata(&root.join("Cargo.toml"))?);
    let bench = choose(&benches, wanted)?;
    let env = TestEnv::prepare(&root, bench.needs().iter().copied());
    env.complete().with_context(|| format!("the benchmark `{wanted}` was not run"))?;
    command::run(
        cargo()
            .current_dir(root)
            .args(["bench", "--package", &bench.package, "--bench", &bench.name, "--"])
            .args(args)
            .envs(env.vars()),
    )
}

fn benches(metadata: &Metadata) -> Vec<Bench> {
    let mut benches: Vec<_> = metadata
        .workspace_packages()
        .into_iter()
        .flat_map(|package| package.targets.iter().map(move |target| (package, target)))
        .filter(|(_, target)| target.is_bench())
        .map(|(package, target)| Bench { package: package.name.to_string(), name: target.name.clone() })
        .collect();
    benches.sort_by(|a, b| (&a.name, &a.package).cmp(&(&b.name, &b.package)));
    benches
}

fn choose<'a>(benches: &'a [Bench], wanted: &str) -> Result<&'a Bench> {
    let found: Vec<_> =
        benches.iter().filter(|b| b.name == wanted || wanted == format!("{}/{}", b.package, b.name)).collect();
    match found[..] {
        [bench] => Ok(bench),
        [] => bail!("there is no benchmark `{wanted}`; `cargo xtask bench` lists them"),
        _ => bail!(
            "several crates have a benchmark `{wanted}`; name one: {}",
            found.iter().map(|b| format!("{}/{}", b.package, b.name)).collect::<Vec<_>>().join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(package: &str, name: &str) -> Bench {
        Bench { package: package.into(), name: name.into() }
    }

    #[test]
    fn a_name_must_mean_one_benchmark() {
        let benches = [bench("a", "one"), bench("a", "two"), bench("b", "two")];
        assert_eq!(choose(&benches, "one").unwrap().package, "a");
        assert_eq!(choose(&benches, "b/two").unwrap().package, "b");
        let unknown = choose(&benches, "three").map(|b| &b.name).unwrap_err();
        assert!(unknown.to_string().contains("lists them"), "{unknown}");
        let double = choose(&benches, "two").map(|b| &b.name).unwrap_err();
        assert!(double.to_string().contains("a/two, b/two"), "{double}");
    }
}
