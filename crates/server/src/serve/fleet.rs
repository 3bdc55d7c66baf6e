//! Many servers, each behind a relay in a task of its own: nothing that becomes of one touches another.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError};

use mcpscope_chaos::guardian::Guardians;
use mcpscope_config::Server;
use mcpscope_core::Transport;
use mcpscope_health::Requirement;
use mcpscope_hooks::Probe;
use mcpscope_proxy::http::{Config, ServerProcess, Tls, Upstream};
use mcpscope_proxy::stdio::ChildHandle;
use mcpscope_proxy::{Paths, Program, RestartPolicy, Traffic};
use tokio::net::TcpListener;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Processes;
use super::seats::{Seat, Seats};
use crate::engine::Registered;
use crate::failure::Failure;
use crate::instance::Instance;
use crate::listen::{Address, Bound};
use crate::tls::tls;
use crate::{relay, supervise};

/// What is said of a server whose relay is gone.
const BROKEN: &str = "the relay ended";

/// The servers that run.
pub(super) struct Fleet<'a> {
    instance: &'a Instance,
    policy: Option<RestartPolicy>,
    guardians: Guardians,
    paths: Paths,
    processes: Processes,
    members: Vec<Member>,
    /// Those that were told to end and may not have.
    ending: Vec<Ending>,
    tasks: JoinSet<()>,
    /// Whether all relays run. Dropped, the instance is not ready any more.
    whole: Requirement,
}

/// One server that runs.
struct Member {
    server: Server,
    url: String,
    seat: Seat,
    traffic: Arc<Traffic>,
    probe: Probe,
    /// As one that may be crashed, if it is one of ours that is started again.
    target: Option<Registered>,
    /// Its process, if it is one of ours.
    process: Option<ChildHandle>,
    stop: CancellationToken,
    task: Id,
    /// Whether its relay ended though it was not told to.
    is_broken: bool,
    ended: CancellationToken,
}

/// One that ends.
struct Ending {
    server: Server,
    process: Option<ChildHandle>,
    ended: CancellationToken,
}

/// The servers that are to run.
pub(super) struct Prepared(Vec<Wanted>);

struct Wanted {
    server: Server,
    /// Nothing for one that runs as it is wanted.
    start: Option<Start>,
    url: String,
}

/// What it takes to start one.
struct Start {
    upstream: Upstream,
    tls: Tls,
    seat: Seat,
    listeners: Vec<TcpListener>,
}

/// What has changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    started: Vec<(String, String)>,
    added: Vec<String>,
    changed: Vec<String>,
    removed: Vec<String>,
}

impl<'a> Fleet<'a> {
    /// Nothing runs yet.
    pub(super) fn new(
        instance: &'a Instance,
        policy: Option<RestartPolicy>,
        guardians: Guardians,
        processes: Processes,
    ) -> Self {
        let whole = instance.reporter().require("servers");
        whole.met();
        Self {
            instance,
            policy,
            guardians,
            paths: instance.paths(),
            processes,
            members: Vec::new(),
            ending: Vec::new(),
            tasks: JoinSet::new(),
            whole,
        }
    }

    /// Makes ready to run these servers and no others. All that can fail fails here, while everything runs on as it is.
    pub(super) fn prepare(&self, servers: &[Server]) -> Result<Prepared, Failure> {
        let is_left = |member: &Member| !servers.iter().any(|server| is_untouched(&member.server, server));
        let mut seats = Seats::new(self.members.iter().map(|member| (&member.seat, is_left(member))));
        let is_any_port = |server: &Server| server.listen.parse().is_ok_and(|address: Address| address.port == 0);
        let mut in_order: Vec<(usize, &Server)> = servers.iter().enumerate().collect();
        in_order.sort_by_key(|(_, server)| is_any_port(server));
        let mut prepared: Vec<_> =
            in_order.into_iter().map(|(at, server)| (at, server, self.prepare_one(server, &mut seats))).collect();
        prepared.sort_by_key(|(at, ..)| *at);
        let (mut wanted, mut failures) = (Vec::new(), Vec::new());
        for (_, server, prepared) in prepared {
            match prepared {
                Ok(one) => wanted.push(one),
                Err(failure) => failures.push(failure.of(&format!("server {:?}", server.name))),
            }
        }
        match Failure::all(&failures) {
            Some(failure) => Err(failure),
            None => Ok(Prepared(wanted)),
        }
    }

    fn prepare_one(&self, server: &Server, seats: &mut Seats<'_>) -> Result<Wanted, Failure> {
        if let Some(member) = self.members.iter().find(|member| is_untouched(&member.server, server)) {
            return Ok(Wanted { server: server.clone(), start: None, url: member.url.clone() });
        }
        let upstream = Upstream::parse(&server.upstream).map_err(Failure::usage)?;
        let tls = tls(self.instance, &upstream)?;
        let address: Address = server.listen.parse().map_err(Failure::usage)?;
        let bound = seats.take(&server.name, &address)?;
        let url = relay::url(bound.addr, &tls, &upstream);
        let listeners = bound.try_clone().and_then(Bound::into_tokio).map_err(Failure::internal)?;
        let seat = Seat { name: server.name.clone(), address, bound };
        Ok(Wanted { server: server.clone(), start: Some(Start { upstream, tls, seat, listeners }), url })
    }

    /// Runs what was prepared: ends those that are not wanted any more, and starts those that do not run yet.
    pub(super) fn change_to(&mut self, Prepared(wanted): Prepared) -> Changes {
        self.ending.retain(|ending| !ending.ended.is_cancelled());
        let processes = self.members.iter().map(|member| &member.process);
        let processes = processes.chain(self.ending.iter().map(|ending| &ending.process)).flatten().cloned().collect();
        *self.processes.lock().unwrap_or_else(PoisonError::into_inner) = processes;
        let mut changes = Changes::default();
        let mut running: BTreeMap<String, Member> =
            self.members.drain(..).map(|member| (member.server.name.clone(), member)).collect();
        let mut members = Vec::new();
        for Wanted { server, start, url } in &wanted {
            if start.is_none()
                && let Some(mut member) = running.remove(&server.name)
            {
                if member.server.critical != server.critical {
                    member.traffic.set_critical(server.critical);
                    member.probe.set_critical(server.critical);
                    if let Some(target) = &member.target {
                        target.set_critical(server.critical);
                    }
                    member.server.critical = server.critical;
                    changes.changed.push(server.name.clone());
                }
                members.push(Some(member));
            } else {
                let kind = if running.contains_key(&server.name) { &mut changes.changed } else { &mut changes.added };
                kind.push(server.name.clone());
                changes.started.push((server.name.clone(), url.clone()));
                members.push(None);
            }
        }
        for member in running.into_values() {
            if !changes.changed.contains(&member.server.name) {
                changes.removed.push(member.server.name.clone());
            }
            self.ending.push(member.end());
        }
        for (Wanted { server, start, url }, member) in wanted.into_iter().zip(members) {
            let member = match (member, start) {
                (Some(member), _) => member,
                (None, Some(start)) => self.start(server, start, url),
                (None, None) => continue,
            };
            self.members.push(member);
        }
        self.tell_whole();
        changes
    }

    fn start(&mut self, server: Server, start: Start, url: String) -> Member {
        let Start { upstream, tls, seat, listeners } = start;
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let traffic = Arc::new(self.paths.add(&server.name, server.critical));
        let probe = self.instance.probe(&server.name, Transport::Http, server.critical);
        let (process, watched) = (self.process(&server, &probe), probe.clone());
        let child = process.as_ref().map(ServerProcess::child);
        let target = child
            .clone()
            .zip(self.policy)
            .map(|(child, policy)| self.instance.targets().register(&server.name, server.critical, child, &policy));
        let state = process.as_ref().map(ServerProcess::state);
        let config = Config { tls, server: state, child: child.clone(), ..Config::new(upstream) };
        let addr = seat.bound.addr;
        relay::warn_of_any_host(&self.instance.settings, addr);
        let relay = relay::relay(self.instance, probe, Arc::clone(&traffic), config, (addr, listeners), stop.clone());
        // A port has room for one of them.
        let before: Vec<CancellationToken> = self
            .ending
            .iter()
            .filter(|other| is_in_the_way(&other.server, &server))
            .map(|other| other.ended.clone())
            .collect();
        let (reporter, name, guard) =
            (self.instance.reporter().clone(), server.name.clone(), ended.clone().drop_guard());
        let task = self.tasks.spawn(async move {
            let _ended = guard;
            let Some(process) = process else { return relay.await };
            let stop = CancellationToken::new();
            let followed = supervise::follow(process.state(), &name, &reporter, |_| ());
            let beside = async {
                tokio::select! {
                    () = all(&before) => process.run(stop.cancelled()).await,
                    () = stop.cancelled() => {}
                }
            };
            let relay = async {
                relay.await;
                stop.cancel();
            };
            tokio::select! {
                ((), ()) = async { tokio::join!(relay, beside) } => {}
                never = followed => match never {},
            }
        });
        Member {
            server,
            url,
            seat,
            traffic,
            probe: watched,
            target,
            process: child,
            stop,
            task: task.id(),
            is_broken: false,
            ended,
        }
    }

    /// The process of a server that is to be started.
    fn process(&self, server: &Server, probe: &Probe) -> Option<ServerProcess> {
        let (program, arguments) = server.command.split_first()?;
        let mut command = Command::new(program);
        // Its stdout is a log like its stderr: ours may be a console exporter's.
        command.args(arguments).stdout(Stdio::from(io::stderr()));
        let program = Program::from(command).guarded(self.guardians.clone());
        let process = ServerProcess::new(program, self.policy, probe.clone())
            .with_start_timeout(self.instance.settings.supervision.start_timeout);
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).push(process.child());
        Some(process)
    }

    /// Names and URLs.
    pub(super) fn urls(&self) -> Vec<(String, String)> {
        self.members.iter().map(|member| (member.server.name.clone(), member.url.clone())).collect()
    }

    /// Waits until a relay has ended; if it was not told to, the instance is not ready until the server is changed or removed. May
    /// be given up at any time.
    pub(super) async fn broken(&mut self) {
        let Some(ended) = self.tasks.join_next_with_id().await else { return std::future::pending().await };
        let (id, why) = match ended {
            Ok((id, ())) => (id, "it ended".to_owned()),
            Err(error) => (error.id(), error.to_string()),
        };
        if let Some(member) = self.members.iter_mut().find(|member| member.task == id) {
            tracing::error!(server = member.server.name, why, "a relay ended");
            member.traffic.lost_server(BROKEN);
            member.is_broken = true;
            self.tell_whole();
        }
    }

    fn tell_whole(&self) {
        match self.members.iter().find(|member| member.is_broken) {
            Some(member) => self.whole.unmet(&format!("{}: {BROKEN}", member.server.name)),
            None => self.whole.met(),
        }
    }

    /// Ends all, and waits until they have.
    pub(super) async fn end(&mut self) {
        for member in self.members.drain(..) {
            member.stop.cancel();
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Member {
    fn end(self) -> Ending {
        self.traffic.retire();
        self.stop.cancel();
        Ending { server: self.server, process: self.process, ended: self.ended }
    }
}

impl Prepared {
    /// Names and URLs.
    pub(super) fn urls(&self) -> Vec<(String, String)> {
        self.0.iter().map(|wanted| (wanted.server.name.clone(), wanted.url.clone())).collect()
    }
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        let Self { started, added, changed, removed } = self;
        started.is_empty() && added.is_empty() && changed.is_empty() && removed.is_empty()
    }

    /// Those that were started: name and URL.
    pub(super) fn started(&self) -> impl Iterator<Item = (&String, &str)> {
        self.started.iter().map(|(name, url)| (name, url.as_str()))
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [("added", &self.added), ("changed", &self.changed), ("removed", &self.removed)];
        let parts = all.into_iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<String> = parts.map(|(what, names)| format!("{what}: {}", names.join(", "))).collect();
        f.write_str(&parts.join("; "))
    }
}

/// Whether a server goes on as it is to become what is wanted. What `critical` says is about the instance.
fn is_untouched(running: &Server, wanted: &Server) -> bool {
    *running == Server { critical: running.critical, ..wanted.clone() }
}

/// Whether the process of a server that ends has to be gone before that of another one is started.
fn is_in_the_way(before: &Server, next: &Server) -> bool {
    before.name == next.name || before.upstream_place() == next.upstream_place()
}

async fn all(tokens: &[CancellationToken]) {
    for token in tokens {
        token.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command as Chosen};

    fn instance() -> Instance {
        let Chosen::Serve(args) = Cli::parse_from(["mcpscope", "serve", "--data", "off"]).command else {
            panic!("no serve")
        };
        Instance::new(&args.common, "serve", mcpscope_chaos::helper::run_if_requested()).unwrap()
    }

    fn server(name: &str, upstream: &str, listen: &str) -> Server {
        let (name, upstream, listen) = (name.to_owned(), upstream.to_owned(), listen.to_owned());
        Server { name, command: Vec::new(), upstream, listen, critical: false }
    }

    fn change(fleet: &mut Fleet<'_>, servers: &[Server]) -> Vec<String> {
        let prepared = fleet.prepare(servers).unwrap();
        fleet.change_to(prepared);
        fleet.urls().into_iter().map(|(_, url)| url).collect()
    }

    #[test]
    fn a_port_has_room_for_one_process_however_it_is_written() {
        let before = server("before", "http://127.0.0.1:1/mcp", "h:0");
        for (name, upstream, waits) in [
            ("after", "http://127.0.0.1:1/mcp", true),
            ("after", "http://localhost:1/other", true),
            ("after", "http://[::1]:1", true),
            ("after", "http://127.0.0.1:2/mcp", false),
            ("after", "http://h:1/mcp", false),
            ("before", "http://127.0.0.1:2/mcp", true),
        ] {
            assert_eq!(is_in_the_way(&before, &server(name, upstream, "h:0")), waits, "{name} {upstream}");
        }
    }

    #[tokio::test]
    async fn the_fleet_is_whole_again_without_the_one_that_broke() {
        let instance = instance();
        let is_whole = || {
            !instance.sources().health.readiness().missing.iter().any(|missing| missing.reason == "x: the relay ended")
        };
        let mut fleet = Fleet::new(&instance, None, Guardians::of("/nowhere/at-all", []), Processes::default());
        let other = server("other", "http://127.0.0.1:1/", "127.0.0.1:0");
        change(&mut fleet, &[server("x", "http://127.0.0.1:1/", "127.0.0.1:0")]);
        fleet.tasks.abort_all();
        fleet.broken().await;
        assert!(!is_whole());
        change(&mut fleet, &[server("x", "http://127.0.0.1:1/", "127.0.0.1:0"), other.clone()]);
        assert!(!is_whole(), "it was not changed");
        change(&mut fleet, &[server("x", "http://127.0.0.1:2/", "127.0.0.1:0"), other]);
        assert!(is_whole());
        fleet.end().await;
    }

    #[tokio::test]
    async fn whose_process_has_ended_is_forgotten() {
        let (instance, processes) = (instance(), Processes::default());
        let mut fleet = Fleet::new(&instance, None, Guardians::of("/nowhere/at-all", []), Arc::clone(&processes));
        let started = |argument: &str| {
            let command = ["sleep", argument].map(str::to_owned).into();
            Server { command, ..server("x", "http://127.0.0.1:1/", "127.0.0.1:0") }
        };
        for change_no in 1..10 {
            change(&mut fleet, &[started(&(1000 + change_no).to_string())]);
            let before: Vec<_> = fleet.ending.iter().map(|ending| ending.ended.clone()).collect();
            assert_eq!(processes.lock().unwrap().len(), 1 + before.len());
            assert!(before.len() < 2, "only the last one may not have ended");
            all(&before).await;
        }
        fleet.end().await;
    }

    #[tokio::test]
    async fn no_two_servers_share_a_socket() {
        let instance = instance();
        let mut fleet = Fleet::new(&instance, None, Guardians::of("/nowhere/at-all", []), Processes::default());
        let before = change(&mut fleet, &[server("x", "http://127.0.0.1:1/", "127.0.0.1:0")]);
        let port = fleet.members[0].seat.bound.addr.port();
        // Whoever asks for the port gets it, though another one that had it comes first.
        let x = server("x", "http://127.0.0.1:2/", "127.0.0.1:0");
        let y = server("y", "http://127.0.0.1:2/", &format!("127.0.0.1:{port}"));
        let after = change(&mut fleet, &[x, y]);
        assert_eq!(after[1], before[0]);
        assert_ne!(after[0], before[0]);
        fleet.end().await;
    }
}
