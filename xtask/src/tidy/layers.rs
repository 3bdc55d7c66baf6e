//! Which crate may depend on which: the layers, the crates that fence off a third-party name, and what each crate must
//! not know.

use cargo_metadata::DependencyKind;

use super::{Dependency, Member, Problem, Repo, line_of_key};

/// Names of packages; a last `*` stands for any ending.
type Names = &'static [&'static str];

/// A crate of ours, and its place.
struct Place {
    name: &'static str,
    level: u8,
    may_use: &'static [&'static str],
    /// Third-party names that it must not depend on.
    must_not_know: &'static [Names],
}

const fn place(
    name: &'static str,
    level: u8,
    may_use: &'static [&'static str],
    must_not_know: &'static [Names],
) -> Place {
    Place { name, level, may_use, must_not_know }
}

/// Stands for every crate of a lower level.
const EVERYTHING: &str = "*";

const HTTP: Names = &["http", "http-*", "hyper*", "warp", "axum*", "reqwest", "tower-http"];

/// The layers, crates of later issues included.
const PLACES: &[Place] = &[
    // "Plain data": neither I/O nor serialization.
    place("core", 0, &[], &[&["tokio*", "serde*", "mio", "rustix", "chrono", "time"]]),
    // Sockets alone: what is spoken on them is not its business.
    place("accept", 1, &[], &[HTTP]),
    place("tls", 1, &[], &[HTTP, &["tokio*"]]),
    place("metrics", 1, &["core"], &[HTTP, &["tokio*"]]),
    place("tracing", 1, &["core"], &[&["tokio*", "opentelemetry*", "tracing-opentelemetry"]]),
    place("chaos", 1, &["core"], &[HTTP, &["tonic*", "prost*", "rmcp", "cel*"]]),
    place("alerts", 1, &["core"], &[HTTP, &["lettre"]]),
    place("health", 1, &[], &[]),
    place("hooks", 2, &["core", "metrics", "tracing", "chaos"], &[]),
    place("history", 2, &["core", "metrics"], &[HTTP, &["tokio*", "futures*", "async-*"]]),
    place(
        "hub",
        3,
        &["core", "metrics", "tracing", "chaos", "alerts", "health", "history", "hooks"],
        &[HTTP, &["tonic*", "prost*", "rmcp", "lettre"]],
    ),
    place(
        "proxy",
        4,
        &["accept", "chaos", "core", "hooks", "health", "tls"],
        &[&["warp", "axum*", "opentelemetry*", "metrics-exporter-*"]],
    ),
    place("grpc", 4, &["accept", "core", "hub"], &[&["warp"]]),
    place("dashboard", 4, &["accept", "core", "hub"], &[&["tonic*", "prost*"]]),
    place("export", 4, &["core", "health", "hub", "metrics", "tracing", "tls"], &[&["warp", "axum*", "rmcp"]]),
    place("notify", 4, &["core", "alerts"], &[&["warp", "axum*", "tonic*", "rmcp"]]),
    // Its settings are its own; the server maps them to each crate's.
    place("config", 4, &[], &[&["tokio*", "hyper*", "warp", "tonic*", "rmcp"]]),
    place("demo", 4, &["core", "hooks"], &[&["warp", "axum*", "tonic*"]]),
    place("server", 5, &[EVERYTHING], &[]),
    // At the edge, because its peers speak real protocols; the tests of every crate may use it.
    place("test-support", 4, &["core"], &[]),
    place("xtask", 5, &[], &[]),
];

/// From this level on a crate may speak to the outside world.
const EDGE: u8 = 4;
/// What only those crates may name.
const EDGE_NAMES: Names = &["tonic*", "prost*", "warp", "hyper*", "opentelemetry*", "tracing-opentelemetry"];
/// Benchmarks compare with these, so they may be development dependencies of the crates that are compared.
const BENCH_PEERS: Names = &["opentelemetry*", "tracing-opentelemetry"];

/// Third-party names that only some crates may depend on.
struct Fence {
    names: Names,
    inside: &'static [&'static str],
    /// Crates that may name it in their tests too.
    tests: &'static [&'static str],
}

const FENCES: &[Fence] = &[
    // The proxy and the server are tested against real MCP peers.
    Fence { names: &["rmcp", "rmcp-*"], inside: &["hooks", "demo", "test-support"], tests: &["proxy", "server"] },
    Fence { names: &["serde_yaml", "yaml_serde"], inside: &["config"], tests: &[] },
    Fence { names: &["redb"], inside: &["history"], tests: &[] },
    Fence { names: &["cel", "cel-*"], inside: &["alerts"], tests: &[] },
];

pub(super) fn check(repo: &Repo) -> Vec<Problem> {
    repo.members
        .iter()
        .flat_map(|member| {
            let manifest = repo.file(&member.manifest()).map_or("", |file| &file.text);
            let Some(place) = find(member.short_name()) else {
                return vec![Problem::new(
                    member.manifest(),
                    0,
                    format!("crate `{}` has no layer", member.short_name()),
                    "a row in xtask/src/tidy/layers.rs and in docs/architecture.md",
                )];
            };
            check_member(member, place, manifest)
        })
        .collect()
}

fn check_member(member: &Member, place: &Place, manifest: &str) -> Vec<Problem> {
    let problem = |dependency: &Dependency, expected: String| {
        Problem::new(
            member.manifest(),
            line_of_key(manifest, &dependency.key),
            format!("{} depends on {}", place.name, dependency.name),
            expected,
        )
    };
    let mut problems = Vec::new();
    for dependency in &member.dependencies {
        let dev = dependency.kind == DependencyKind::Development;
        if dependency.local {
            if let Some(expected) = wrong_layer(place, dependency, dev) {
                problems.push(problem(dependency, expected));
            }
            continue;
        }
        let name = &dependency.name;
        if !dev && place.must_not_know.iter().any(|names| any_matches(names, name)) {
            problems.push(problem(dependency, format!("{} not to know it", place.name)));
        }
        if place.level < EDGE && any_matches(EDGE_NAMES, name) && !(dev && any_matches(BENCH_PEERS, name)) {
            problems.push(problem(dependency, format!("it in crates of L{EDGE} and above only (invariant 1)")));
        }
        for fence in FENCES.iter().filter(|fence| any_matches(fence.names, name)) {
            let allowed = fence.inside.contains(&place.name) || (dev && fence.tests.contains(&place.name));
            if !allowed {
                let inside = fence.inside.join(", ");
                problems.push(problem(dependency, format!("it in {inside} only (invariant 1)")));
            }
        }
        if place.name == "hooks" && name == "rmcp" && !dev && !dependency.optional {
            problems.push(problem(dependency, "it behind a feature (invariant 1)".into()));
        }
    }
    problems
}

/// What was expected instead of this dependency on a crate of ours, if it is wrong.
fn wrong_layer(place: &Place, dependency: &Dependency, dev: bool) -> Option<String> {
    let name = match dependency.name.as_str() {
        "mcpscope" => "server",
        name => name.strip_prefix("mcpscope-").unwrap_or(name),
    };
    let Some(target) = find(name) else {
        return Some("a crate with a row in xtask/src/tidy/layers.rs".into());
    };
    if name == "test-support" {
        return (!dev).then(|| "test-support as a development dependency only".into());
    }
    let lower = target.level < place.level;
    // A test may set up any lower crate that the code under test reaches through another.
    let allowed =
        if dev || place.may_use.contains(&EVERYTHING) { lower } else { lower && place.may_use.contains(&name) };
    (!allowed).then(|| match place.may_use {
        [] => "none of our crates".into(),
        names => format!("of our crates only: {}", names.join(", ")),
    })
}

fn find(name: &str) -> Option<&'static Place> {
    PLACES.iter().find(|place| place.name == name)
}

fn any_matches(patterns: Names, name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::expect;
    use super::*;

    #[track_caller]
    fn check_one(short_name: &str, dependency: Dependency, expected: &[&str]) {
        let repo = Repo::with_members([Member::sound(short_name).on(dependency)]);
        expect(&check(&repo), expected);
    }

    fn ours(name: &str) -> Dependency {
        Dependency::normal(&format!("mcpscope-{name}")).local()
    }

    fn ours_in_tests(name: &str) -> Dependency {
        Dependency::dev(&format!("mcpscope-{name}")).local()
    }

    #[test]
    fn the_table_itself_goes_downwards() {
        for place in PLACES {
            for used in place.may_use.iter().filter(|used| **used != EVERYTHING) {
                assert!(find(used).unwrap().level < place.level, "{} uses {used}", place.name);
            }
        }
    }

    #[test]
    fn dependencies_go_down_the_layers() {
        check_one("metrics", ours("core"), &[]);
        check_one("core", ours("metrics"), &["crates/core/Cargo.toml:0: core depends on mcpscope-metrics"]);
        check_one("metrics", ours("tracing"), &["crates/metrics/Cargo.toml:0: metrics depends on mcpscope-tracing"]);
        check_one("proxy", ours("metrics"), &["crates/proxy/Cargo.toml:0: proxy depends on mcpscope-metrics"]);
        check_one("health", ours("core"), &["crates/health/Cargo.toml:0: health depends on mcpscope-core"]);
        check_one("config", ours("proxy"), &["crates/config/Cargo.toml:0: config depends on mcpscope-proxy"]);
        check_one("server", ours("proxy"), &[]);
    }

    #[test]
    fn tests_may_use_lower_crates_and_test_support() {
        check_one("proxy", ours_in_tests("metrics"), &[]);
        check_one("health", ours_in_tests("test-support"), &[]);
        check_one("core", ours_in_tests("hooks"), &["crates/core/Cargo.toml:0: core depends on mcpscope-hooks"]);
        check_one(
            "proxy",
            ours("test-support"),
            &["crates/proxy/Cargo.toml:0: proxy depends on mcpscope-test-support"],
        );
    }

    #[test]
    fn a_crate_without_a_row_is_told() {
        let repo = Repo::with_members([Member::sound("utils")]);
        expect(&check(&repo), &["crates/utils/Cargo.toml:0: crate `utils` has no layer"]);
    }

    #[test]
    fn publishers_stay_at_the_edge() {
        check_one("dashboard", Dependency::normal("warp"), &[]);
        check_one("test-support", Dependency::normal("hyper"), &[]);
        check_one(
            "hooks",
            Dependency::normal("hyper-util"),
            &["crates/hooks/Cargo.toml:0: hooks depends on hyper-util"],
        );
        check_one("hooks", Dependency::dev("warp"), &["crates/hooks/Cargo.toml:0: hooks depends on warp"]);
        check_one("tracing", Dependency::dev("opentelemetry_sdk"), &[]);
    }

    #[test]
    fn fenced_names_stay_inside() {
        let optional = Dependency { optional: true, ..Dependency::normal("rmcp") };
        check_one("hooks", optional, &[]);
        check_one("hooks", Dependency::normal("rmcp"), &["crates/hooks/Cargo.toml:0: hooks depends on rmcp"]);
        check_one("proxy", Dependency::dev("rmcp"), &[]);
        check_one("proxy", Dependency::normal("rmcp"), &["crates/proxy/Cargo.toml:0: proxy depends on rmcp"]);
        check_one("config", Dependency::normal("yaml_serde"), &[]);
        check_one(
            "server",
            Dependency::normal("yaml_serde"),
            &["crates/server/Cargo.toml:0: server depends on yaml_serde"],
        );
        check_one("hub", Dependency::normal("redb"), &["crates/hub/Cargo.toml:0: hub depends on redb"]);
        check_one("server", Dependency::dev("cel"), &["crates/server/Cargo.toml:0: server depends on cel"]);
    }

    #[test]
    fn crates_do_not_know_what_they_must_not() {
        check_one("core", Dependency::normal("serde"), &["crates/core/Cargo.toml:0: core depends on serde"]);
        check_one("core", Dependency::normal("tokio-util"), &["crates/core/Cargo.toml:0: core depends on tokio-util"]);
        check_one("core", Dependency::dev("serde_json"), &[]);
        check_one(
            "dashboard",
            Dependency::normal("tonic"),
            &["crates/dashboard/Cargo.toml:0: dashboard depends on tonic"],
        );
    }

    #[test]
    fn a_problem_points_at_the_line_of_the_manifest() {
        let mut repo = Repo::with_members([Member::sound("core").on(Dependency::normal("serde"))]);
        repo.files = Repo::with_files(&[("crates/core/Cargo.toml", "[dependencies]\nserde.workspace = true\n")]).files;
        expect(&check(&repo), &["crates/core/Cargo.toml:2: core depends on serde"]);
    }
}
