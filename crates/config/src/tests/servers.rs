//! `servers`: a list whose elements have keys of their own.

use std::{fs, path::Path};

use expect_test::{Expect, expect};

use super::load;
use crate::{Server, Settings};

fn server(name: &str, listen: &str) -> Server {
    let (name, upstream, listen) = (name.to_owned(), "http://127.0.0.1:3001/mcp".to_owned(), listen.to_owned());
    Server { name, command: Vec::new(), upstream, listen, critical: false }
}

fn bad(file: &str, expected: &Expect) {
    expected.assert_eq(&load(&[file.as_bytes()], &[]).unwrap_err());
}

#[test]
fn both_kinds() {
    let file = b"
servers:
  - { name: one, upstream: 'http://127.0.0.1:3001/mcp', listen: 'localhost:9001' }
  - name: two
    command: [npx, -y, my-server, '']
    upstream: http://127.0.0.1:3001/mcp
    listen: '[::1]:0'
    critical: true
";
    let settings = load(&[file], &[]).unwrap();
    let command = ["npx", "-y", "my-server", ""].map(str::to_owned).into();
    let two = Server { command, critical: true, ..server("two", "[::1]:0") };
    assert_eq!(settings.servers, [server("one", "localhost:9001"), two]);
    let text = serde_yaml::to_string(&settings).unwrap();
    assert_eq!(load(&[text.as_bytes()], &[]), Ok(settings), "written as YAML it comes back");
}

#[test]
fn the_examples_in_the_documentation_load() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (file, start) in [("docs/serve.md", "```yaml\n"), ("README.md", "```yaml\n# mcpscope.yaml\n")] {
        let text = fs::read_to_string(top.join(file)).unwrap();
        let (_, rest) = text.split_once(start).unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let servers = load(&[example.as_bytes()], &[]).unwrap().servers;
        let seen: Vec<_> =
            servers.iter().map(|server| (&*server.name, server.command.len(), server.critical)).collect();
        assert_eq!(seen, [("weather", 0, true), ("files", 3, false)], "{file}");
    }
    let sample = fs::read_to_string(top.join("config/mcpscope.yaml")).unwrap();
    let (_, rest) = sample.split_once("#   servers:\n").unwrap();
    let lines = rest.lines().map_while(|line| line.strip_prefix("#   "));
    let example = format!("servers:\n{}", lines.map(|line| format!("{line}\n")).collect::<String>());
    assert_eq!(load(&[example.as_bytes()], &[]).unwrap().servers.len(), 2, "{example}");
}

#[test]
fn a_later_layer_replaces_the_list() {
    let one = b"servers: [{ name: one, upstream: 'http://127.0.0.1:3001/mcp', listen: 'a:1' }]";
    let two = b"servers: [{ name: two, upstream: 'http://127.0.0.1:3001/mcp', listen: 'a:1' }]";
    assert_eq!(load(&[one, two], &[]).unwrap().servers, [server("two", "a:1")]);
    assert_eq!(load(&[one], &[("MCPSCOPE_SERVERS", "")]), Ok(Settings::default()));
    expect![[r#"MCPSCOPE_SERVERS: servers: expected a mapping of name, upstream and listen, and of command and critical where they are wanted, found "a""#]]
        .assert_eq(&load(&[], &[("MCPSCOPE_SERVERS", "a,b")]).unwrap_err());
}

#[test]
fn every_error_has_its_own_place() {
    bad(
        "
servers:
  - nmae: one
    upstream: localhost:3001
    listen: 9001
  - { name: two, upstream: 'http://h', listen: 'h:1', critical: yes, command: [] }
  - { name: two, upstream: 'http://h', listen: 'H:1', restart: never }
  - { name: three, listen: 'h:2', command: run me }
  - just a name
  - { name: '', command: [a, 1], listen: h, upstream: 'http://u@h' }
  - { name: five, name: six, upstream: 'ftp://h', listen: 'h:0' }
  - { name: two, upstream: 'http://h', listen: 'h:0' }
  - !tag {}
  - [a]
  - { [a]: 1, name: seven, upstream: 'http://h?q', listen: 'h:2', 7: 7 }
  - { listen: 'h:3' }
tracing: { max_traces: 0 }
",
        &expect![[r#"
            a.yaml:3:5: servers[0].nmae: unknown key, did you mean `name`?
            a.yaml:4:15: servers[0].upstream: expected a URL http[s]://HOST[:PORT][/PATH] such as http://127.0.0.1:3001/mcp, found "localhost:3001"
            a.yaml:5:13: servers[0].listen: expected an address HOST:PORT such as 127.0.0.1:50051, localhost:0 or [::1]:50051, found 9001
            a.yaml:6:65: servers[1].critical: expected true or false, found "yes"
            a.yaml:6:79: servers[1].command: expected a list, not an empty one, of a program and its arguments such as [npx, -y, my-server], found a list
            a.yaml:7:13: servers[2].name: "two" is the name of servers[1] already
            a.yaml:7:48: servers[2].listen: "H:1" is the address of servers[1] already
            a.yaml:7:55: servers[2].restart: unknown key
            a.yaml:8:44: servers[3].command: expected a list, not an empty one, of a program and its arguments such as [npx, -y, my-server], found "run me"
            a.yaml:8:5: servers[3]: expected a mapping of name, upstream and listen, and of command and critical where they are wanted; missing: upstream
            a.yaml:9:5: servers[4]: expected a mapping of name, upstream and listen, and of command and critical where they are wanted, found "just a name"
            a.yaml:10:13: servers[5].name: expected a name of 1 to 128 bytes, found ""
            a.yaml:10:26: servers[5].command: expected a list, not an empty one, of a program and its arguments such as [npx, -y, my-server], found 1
            a.yaml:10:42: servers[5].listen: expected an address HOST:PORT such as 127.0.0.1:50051, localhost:0 or [::1]:50051, found "h"
            a.yaml:10:55: servers[5].upstream: expected a URL http[s]://HOST[:PORT][/PATH] such as http://127.0.0.1:3001/mcp, found "http://u@h"
            a.yaml:11:19: servers[6].name: given twice
            a.yaml:11:40: servers[6].upstream: expected a URL http[s]://HOST[:PORT][/PATH] such as http://127.0.0.1:3001/mcp, found "ftp://h"
            a.yaml:12:13: servers[7].name: "two" is the name of servers[1] already
            a.yaml:13:5: servers[8]: expected a mapping of name, upstream and listen, and of command and critical where they are wanted, found a tag
            a.yaml:14:5: servers[9]: expected a mapping of name, upstream and listen, and of command and critical where they are wanted, found a list
            a.yaml:15:7: servers[10]: expected the name of a key
            a.yaml:15:38: servers[10].upstream: expected a URL http[s]://HOST[:PORT][/PATH] such as http://127.0.0.1:3001/mcp, found "http://h?q"
            a.yaml:15:60: servers[10].listen: "h:2" is the address of servers[3] already
            a.yaml:15:67: servers[10].7: unknown key
            a.yaml:16:5: servers[11]: expected a mapping of name, upstream and listen, and of command and critical where they are wanted; missing: name, upstream
            a.yaml:17:24: tracing.max_traces: expected a whole number from 1 to 1000000, found 0"#]],
    );
    bad(
        "servers: { name: one }\n",
        &expect![
            "a.yaml:1:10: servers: expected a list of servers, each a mapping of name, upstream and listen, and of command and critical where they are wanted, found a mapping"
        ],
    );
    bad(
        "servers: 7\n",
        &expect![
            "a.yaml:1:10: servers: expected a list of servers, each a mapping of name, upstream and listen, and of command and critical where they are wanted, found 7"
        ],
    );
    bad(
        "servers:\n",
        &expect![
            "a.yaml:1:9: servers: expected a list of servers, each a mapping of name, upstream and listen, and of command and critical where they are wanted, found nothing"
        ],
    );
}

#[test]
fn what_is_missing_is_said_with_what_is_wrong() {
    bad(
        "
servers:
  - { name: one }
  - { name: one, lisen: 'h:1' }
  - { name: two, listen: 7, critical: 7 }
",
        &expect![[r#"
            a.yaml:3:5: servers[0]: expected a mapping of name, upstream and listen, and of command and critical where they are wanted; missing: upstream, listen
            a.yaml:4:13: servers[1].name: "one" is the name of servers[0] already
            a.yaml:4:18: servers[1].lisen: unknown key, did you mean `listen`?
            a.yaml:4:5: servers[1]: expected a mapping of name, upstream and listen, and of command and critical where they are wanted; missing: upstream
            a.yaml:5:26: servers[2].listen: expected an address HOST:PORT such as 127.0.0.1:50051, localhost:0 or [::1]:50051, found 7
            a.yaml:5:39: servers[2].critical: expected true or false, found 7
            a.yaml:5:5: servers[2]: expected a mapping of name, upstream and listen, and of command and critical where they are wanted; missing: upstream"#]],
    );
}

#[test]
fn nobody_is_where_another_one_is() {
    bad(
        "
servers:
  - { name: one, upstream: 'http://h:1/mcp', listen: 'H:1' }
  - { name: two, upstream: 'http://h:2/a', command: [a], listen: 'h:0' }
  - { name: three, upstream: 'http://h:2/b', command: [b], listen: 'h:0' }
  - { name: four, upstream: 'http://h:2/b', listen: 'h:0' }
  - { name: five, upstream: 'http://[::1]/', listen: '[::1]:80' }
",
        &expect![[r#"
            a.yaml:3:5: servers[0]: upstream http://h:1/mcp and listen H:1 are the same place: clients would be passed on to where they came from
            a.yaml:5:5: servers[2]: servers[1] is started there already, at http://h:2/b
            a.yaml:7:5: servers[4]: upstream http://[::1]/ and listen [::1]:80 are the same place: clients would be passed on to where they came from"#]],
    );
}

#[test]
fn nobody_leads_back_to_where_requests_came_from() {
    bad(
        "
servers:
  - { name: itself, upstream: 'http://localhost:1/mcp', listen: '127.0.0.1:1' }
  - { name: all, upstream: 'http://127.0.0.1:2/mcp', listen: '0.0.0.0:2' }
  - { name: a, upstream: 'http://127.0.0.1:4/', listen: 'localhost:3' }
  - { name: b, upstream: 'http://[::1]:5/', listen: '127.0.0.1:4' }
  - { name: c, upstream: 'http://localhost:3/', listen: '[::]:5' }
  - { name: d, upstream: 'http://localhost:3/', listen: 'localhost:6' }
  - { name: e, upstream: 'http://h:7/', listen: '127.0.0.1:7' }
  - { name: f, upstream: 'http://127.0.0.1:8/', command: [f], listen: 'h:0' }
  - { name: g, upstream: 'http://localhost:8/', command: [g], listen: 'h:0' }
",
        &expect![[r#"
            a.yaml:3:5: servers[0]: upstream http://localhost:1/mcp and listen 127.0.0.1:1 are the same place: clients would be passed on to where they came from
            a.yaml:4:5: servers[1]: upstream http://127.0.0.1:2/mcp and listen 0.0.0.0:2 are the same place: clients would be passed on to where they came from
            a.yaml:7:5: servers[4]: upstream http://localhost:3/ leads back to listen [::]:5 by way of servers[2], servers[3]: clients would be passed on to where they came from
            a.yaml:11:5: servers[8]: servers[7] is started there already, at http://localhost:8/"#]],
    );
}

#[test]
fn there_is_a_limit() {
    let list = |count| {
        (0..count).map(|n| format!("{{name: a{n}, upstream: 'http://h', listen: 'h:0'}}, ")).collect::<String>()
    };
    let file = |count| format!("servers: [{}]\ntracing: {{ max_traces: 0 }}\n", list(count));
    let error = load(&[file(256).as_bytes()], &[]).unwrap_err();
    assert_eq!(error.lines().count(), 1, "{error}");
    let error = load(&[file(257).as_bytes()], &[]).unwrap_err();
    assert!(error.contains("servers: expected 256 servers at most") && error.lines().count() == 2, "{error}");
}

#[test]
fn anchors_are_followed() {
    let file = b"
servers:
  - { name: one, upstream: &up 'http://127.0.0.1:3001/mcp', listen: &any 'h:0' }
  - { name: two, upstream: *up, listen: *any }
";
    assert_eq!(load(&[file], &[]).unwrap().servers, [server("one", "h:0"), server("two", "h:0")]);
}
