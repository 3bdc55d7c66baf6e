//! What Rust sources may contain where: the invariants on globals, the environment and ending the process, and the
//! shape of a file.

use super::rust_text::{RustText, braces, words};
use super::{Problem, Repo, TextFile};

/// Words that only some crates may use in their libraries.
struct Fence {
    words: &'static [&'static str],
    inside: &'static [&'static str],
    expected: &'static str,
}

const FENCES: &[Fence] = &[
    Fence {
        words: &["std::env", "env::"],
        inside: &["config", "server", "export"],
        expected: "the environment to be read by config, server and export only (invariant 7)",
    },
    Fence {
        words: &["process::exit", "process::abort"],
        inside: &["server"],
        expected: "the process to be ended by server only (invariant 7)",
    },
    Fence {
        words: &["tokio::spawn", "task::spawn", "task::spawn_local"],
        inside: &["server"],
        expected: "a future returned to the caller, or a JoinSet that it owns (invariant 7)",
    },
    Fence {
        words: &[
            "set_global",
            "set_global_default",
            "set_global_recorder",
            "set_logger",
            "set_boxed_logger",
            "set_hook",
            "set_tracer_provider",
            "set_meter_provider",
            "set_text_map_propagator",
        ],
        inside: &["server"],
        expected: "globals to be installed by server only (invariant 7)",
    },
];

/// The crates whose state is all in instances.
const INSTANCES_ONLY: &[&str] = &["core", "metrics", "tracing", "chaos", "alerts", "health", "hooks", "history"];
/// What makes a static mutable.
const MUTABLE: &[&str] =
    &["OnceLock", "LazyLock", "OnceCell", "LazyCell", "Mutex", "RwLock", "RefCell", "Cell", "ArcSwap", "Atomic"];
/// Files that may keep a thread's cache or a call site's id all the same, and why.
const STATICS: &[(&str, &str)] = &[
    ("crates/metrics/src/handle.rs", "numbers the call sites of the macros; what they mean is each instance's"),
    ("crates/metrics/src/storage/local.rs", "what a thread has of each instance, found by the instance's number"),
    ("crates/metrics/src/storage/mod.rs", "numbers the instances, so that threads can tell them apart"),
    ("crates/tracing/src/ids.rs", "what a thread draws ids from, found by the instance's number"),
    ("crates/tracing/src/span.rs", "memory of spans that a thread has ended, for its next ones"),
];
/// Files that may do what else only `server` may: what they run is a process of its own.
const ENTRIES: &[(&str, &str)] = &[
    ("crates/chaos/src/guardian.rs", "reads the arguments of a guardian, which is all of its process, and ends it"),
    ("crates/chaos/src/helper/linux.rs", "reads the arguments of a helper, which is all of its process, and ends it"),
];
/// Files that may use `unsafe`, and why.
const UNSAFE: &[(&str, &str)] = &[
    ("crates/chaos/src/helper/network/namespace.rs", "a process that is to have a network of its own says so itself"),
    ("crates/chaos/src/helper/mapping.rs", "an allocator keeps what is freed; only what is unmapped is gone"),
    ("crates/metrics/src/storage/local.rs", "finding a thread's cells safely takes as long as writing to them"),
];

const LONG: usize = 600;
const TOO_LONG: usize = 1000;
const SERVER_MAIN: &str = "crates/server/src/main.rs";
const SERVER_MAIN_LINES: usize = 150;

pub(super) fn check(repo: &Repo) -> Vec<Problem> {
    check_files(repo, STATICS, UNSAFE)
}

fn check_files(repo: &Repo, statics: &[(&str, &str)], unsafes: &[(&str, &str)]) -> Vec<Problem> {
    let mut problems: Vec<_> = repo.rust_files().flat_map(|file| check_file(file, statics, unsafes)).collect();
    for (path, _) in statics.iter().chain(unsafes).filter(|(path, _)| repo.file(path).is_none()) {
        problems.push(Problem::new(
            *path,
            0,
            "is listed as an exception, but does not exist",
            "it off the list in xtask/src/tidy/sources.rs",
        ));
    }
    problems
}

fn check_file(file: &TextFile, statics: &[(&str, &str)], unsafes: &[(&str, &str)]) -> Vec<Problem> {
    let text = RustText::new(&file.text);
    let listed = |list: &[(&str, &str)]| list.iter().any(|(path, _)| *path == file.path);
    let mut problems = shape(file);
    problems.extend(left_overs(file, &text));
    let uses = words(&text.code, "unsafe").map(|at| {
        let what = "`unsafe`";
        Problem::new(
            &file.path,
            file.line_at(at),
            what,
            "safe code, or the file listed with its reason in xtask/src/tidy/sources.rs",
        )
    });
    problems.extend(excused(file, "unsafe", listed(unsafes), uses.collect()));
    if let Some(library) = file.library_of() {
        let code = text.code_without_tests();
        problems.extend(excused(file, "entry", listed(ENTRIES), fences(file, library, &code)));
        if INSTANCES_ONLY.contains(&library) {
            problems.extend(excused(file, "static", listed(statics), mutable_statics(file, &code)));
        }
    }
    problems
}

/// On a listed file the problems are excused; if there are none, the list is out of date.
fn excused(file: &TextFile, what: &str, listed: bool, problems: Vec<Problem>) -> Vec<Problem> {
    match (listed, problems.is_empty()) {
        (false, _) => problems,
        (true, false) => Vec::new(),
        (true, true) => vec![Problem::new(
            &file.path,
            0,
            format!("is listed as an exception, but has no {what}"),
            "it off the list in xtask/src/tidy/sources.rs",
        )],
    }
}

/// How a file begins, and how long it is.
fn shape(file: &TextFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    let first = file.text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    if !first.starts_with("//!") && !first.starts_with("#![doc = include_str!(") {
        problems.push(Problem::new(&file.path, 1, "does not say what it is for", "`//!` documentation first"));
    }
    let lines = file.text.lines().count();
    if lines > LONG {
        problems.push(Problem {
            warning: lines <= TOO_LONG,
            ..Problem::new(
                &file.path,
                lines,
                format!("{lines} lines"),
                format!("at most {LONG}: a module has one subject"),
            )
        });
    }
    if file.path == SERVER_MAIN && lines >= SERVER_MAIN_LINES {
        problems.push(Problem::new(
            &file.path,
            lines,
            format!("{lines} lines"),
            format!("main under {SERVER_MAIN_LINES}: it only assembles"),
        ));
    }
    problems
}

/// Work that was begun, not done.
fn left_overs(file: &TextFile, text: &RustText) -> Vec<Problem> {
    let code = ["todo!(", "unimplemented!(", "ignore"];
    let comments = ["TODO", "FIXME", "XXX"];
    let in_code = code.iter().flat_map(|word| words(&text.code, word).map(move |at| (at, word)));
    let in_comments = comments.iter().flat_map(|word| words(&text.comments, word).map(move |at| (at, word)));
    let is_attribute = |at: usize| text.code[..at].trim_end().ends_with(['[', ',']) && text.code[..at].contains("#[");
    in_code
        .filter(|(at, word)| **word != "ignore" || is_attribute(*at))
        .chain(in_comments)
        .map(|(at, word)| {
            let word = word.trim_end_matches('(');
            Problem::new(
                &file.path,
                file.line_at(at),
                format!("`{word}` left over"),
                "finished work, or an issue that names it",
            )
        })
        .collect()
}

fn fences(file: &TextFile, library: &str, code: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for fence in FENCES.iter().filter(|fence| !fence.inside.contains(&library)) {
        let mut lines: Vec<_> =
            fence.words.iter().flat_map(|word| words(code, word).map(|at| (file.line_at(at), *word))).collect();
        lines.sort_unstable();
        // `std::env::var` holds two of the words: one problem.
        lines.dedup_by_key(|(line, _)| *line);
        let told = lines
            .into_iter()
            .map(|(line, word)| Problem::new(&file.path, line, format!("`{word}` in {library}"), fence.expected));
        problems.extend(told);
    }
    problems
}

/// Statics that can change, thread-locals among them.
fn mutable_statics(file: &TextFile, code: &str) -> Vec<Problem> {
    let problem = |at: usize, what: &str| {
        Problem::new(
            &file.path,
            file.line_at(at),
            what,
            "state in an instance (invariant 10), or the file listed with its reason in xtask/src/tidy/sources.rs",
        )
    };
    let macros: Vec<_> = ["thread_local!", "lazy_static!"]
        .iter()
        .flat_map(|name| words(code, name).map(move |at| (at, *name)))
        .collect();
    let in_macro = |at: usize| macros.iter().any(|(start, _)| braces(code, *start).contains(&at));
    let statics = words(code, "static").filter(|&at| {
        let lifetime = code[..at].ends_with('\'');
        !lifetime && !in_macro(at) && is_mutable_static(&code[at..])
    });
    let told = statics.map(|at| problem(at, "mutable static"));
    told.chain(macros.iter().map(|(at, name)| problem(*at, &format!("`{name}`")))).collect()
}

/// Whether `item`, which begins with `static`, can change.
fn is_mutable_static(item: &str) -> bool {
    let declared = item.split(['=', ';']).next().unwrap_or(item);
    let Some((name, of_type)) = declared.split_once(':') else {
        return false;
    };
    words(name, "mut").next().is_some()
        || MUTABLE.iter().any(|word| {
            of_type
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|part| part == *word || (*word == "Atomic" && part.starts_with("Atomic")))
        })
}

#[cfg(test)]
mod tests {
    use super::super::testing::expect;
    use super::*;

    /// Without exceptions, which name files of this very tree.
    fn check(repo: &Repo) -> Vec<Problem> {
        check_files(repo, &[], &[])
    }

    /// Checks a file that begins as it should, so that `text` starts on line 2.
    #[track_caller]
    fn check_text(path: &str, text: &str, expected: &[&str]) {
        let repo = Repo::with_files(&[(path, &format!("//! Docs.\n{text}"))]);
        expect(&check(&repo), expected);
    }

    #[test]
    fn the_environment_is_read_by_few() {
        let read = "fn f() { std::env::var(\"X\"); }";
        check_text("crates/proxy/src/a.rs", read, &["crates/proxy/src/a.rs:2: `env::` in proxy"]);
        check_text(
            "crates/proxy/src/a.rs",
            "use std::{env, fs};\nfn f() { env::args() }",
            &["crates/proxy/src/a.rs:3: `env::` in proxy"],
        );
        check_text("crates/proxy/src/a.rs", "use std::env;", &["crates/proxy/src/a.rs:2: `std::env` in proxy"]);
        for elsewhere in
            ["crates/config/src/a.rs", "crates/server/src/a.rs", "crates/proxy/tests/a.rs", "xtask/src/a.rs"]
        {
            check_text(elsewhere, read, &[]);
        }
        check_text(
            "crates/proxy/src/a.rs",
            "// std::env::var\n#[cfg(test)]\nmod tests { fn f() { std::env::temp_dir(); } }",
            &[],
        );
        check_text("crates/proxy/src/a.rs", "const V: &str = env!(\"CARGO_PKG_VERSION\");", &[]);
    }

    #[test]
    fn only_the_server_ends_the_process_spawns_and_installs_globals() {
        for (code, what) in [
            ("std::process::exit(1)", "process::exit"),
            ("tokio::spawn(x)", "tokio::spawn"),
            ("tokio::task::spawn(x)", "task::spawn"),
            ("std::panic::set_hook(x)", "set_hook"),
            ("tracing::subscriber::set_global_default(x)", "set_global_default"),
        ] {
            let text = format!("fn f() {{ {code} }}");
            check_text("crates/hooks/src/a.rs", &text, &[&format!("crates/hooks/src/a.rs:2: `{what}` in hooks")]);
            check_text("crates/server/src/a.rs", &text, &[]);
        }
        check_text("crates/hooks/src/a.rs", "fn f() { set.spawn(x); tokio::task::spawn_blocking(y); }", &[]);
    }

    #[test]
    fn lower_layers_keep_no_mutable_statics() {
        let told = &["crates/metrics/src/a.rs:2: mutable static"];
        for text in [
            "static mut N: u32 = 0;",
            "static N: OnceLock<u32> = OnceLock::new();",
            "static N: std::sync::Mutex<Vec<u32>> = x;",
            "pub static N: AtomicU64 = AtomicU64::new(0);",
        ] {
            check_text("crates/metrics/src/a.rs", text, told);
            check_text("crates/server/src/a.rs", text, &[]);
        }
        let cache = "thread_local! { static C: Cell<u32> = const { Cell::new(0) }; }";
        check_text("crates/metrics/src/a.rs", cache, &["crates/metrics/src/a.rs:2: `thread_local!`"]);
        let fine = "static NAMES: [&'static str; 2] = x;\nstruct S { once: OnceLock<&'static str>, n: AtomicU64 }";
        check_text("crates/metrics/src/a.rs", fine, &[]);
    }

    #[test]
    fn unsafe_is_listed_or_refused() {
        check_text("crates/proxy/tests/a.rs", "fn f() { unsafe { g() } }", &["crates/proxy/tests/a.rs:2: `unsafe`"]);
        check_text("crates/proxy/tests/a.rs", "#![forbid(unsafe_code)] // unsafe", &[]);
    }

    #[test]
    fn an_exception_must_be_needed() {
        let file = |text: &str| TextFile { path: "crates/metrics/src/a.rs".into(), text: format!("//! Docs.\n{text}") };
        let list: &[(&str, &str)] = &[("crates/metrics/src/a.rs", "a thread's cache")];
        let cache = file("thread_local! { static C: Cell<u32> = x; }");
        expect(&check_file(&cache, list, &[]), &[]);
        expect(
            &check_file(&file(""), list, &[]),
            &["crates/metrics/src/a.rs:0: is listed as an exception, but has no static"],
        );
        expect(
            &check_file(&file(""), &[], list),
            &["crates/metrics/src/a.rs:0: is listed as an exception, but has no unsafe"],
        );
        expect(
            &check_files(&Repo::with_files(&[]), list, &[]),
            &["crates/metrics/src/a.rs:0: is listed as an exception, but does not exist"],
        );
    }

    #[test]
    fn files_say_what_they_are_for() {
        let check_first = |text: &str| check(&Repo::with_files(&[("xtask/src/a.rs", text)]));
        expect(&check_first("fn f() {}"), &["xtask/src/a.rs:1: does not say what it is for"]);
        expect(&check_first("//! Docs."), &[]);
        expect(&check_first("#![doc = include_str!(\"../README.md\")]"), &[]);
    }

    #[test]
    fn long_files_warn_and_longer_ones_fail() {
        let check_lines = |path: &str, lines: usize| check(&Repo::with_files(&[(path, &"//!\n".repeat(lines))]));
        expect(&check_lines("xtask/src/a.rs", LONG), &[]);
        assert!(check_lines("xtask/src/a.rs", LONG + 1)[0].warning);
        assert!(!check_lines("xtask/src/a.rs", TOO_LONG + 1)[0].warning);
        expect(&check_lines("crates/grpc/src/generated/a.rs", TOO_LONG + 1), &[]);
        expect(&check_lines(SERVER_MAIN, 149), &[]);
        expect(&check_lines(SERVER_MAIN, 150), &["crates/server/src/main.rs:150: 150 lines"]);
    }

    #[test]
    fn unfinished_work_is_told() {
        for (text, what) in [
            ("fn f() { todo!() }", "todo!"),
            ("fn f() { unimplemented!(\"later\") }", "unimplemented!"),
            ("#[ignore = \"slow\"]\nfn f() {}", "ignore"),
            ("#[test]\n#[ignore]\nfn f() {}", "ignore"),
            ("// FIXME: wrong", "FIXME"),
        ] {
            let problems = check(&Repo::with_files(&[("crates/core/tests/a.rs", &format!("//! Docs.\n{text}"))]));
            assert_eq!(problems.len(), 1, "{text}");
            assert_eq!(problems[0].what, format!("`{what}` left over"));
        }
        check_text("crates/core/tests/a.rs", "fn ignore() {} // what todo!( does", &[]);
    }
}
