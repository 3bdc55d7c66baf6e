//! Many servers, each behind a relay in a task of its own: nothing that becomes of one touches another.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError};

use mcpscope_config::Server;
use mcpscope_core::Transport;
use mcpscope_health::Requirement;
use mcpscope_proxy::http::{Config, ServerProcess, Tls, Upstream};
use mcpscope_proxy::{Paths, RestartPolicy, Traffic};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Processes;
use crate::failure::Failure;
use crate::instance::Instance;
use crate::listen::{Address, Bound, bind_or_fail};
use crate::tls::tls;
use crate::{relay, supervise};

/// The servers that run.
pub(super) struct Fleet<'a> {
    instance: &'a Instance,
    policy: Option<RestartPolicy>,
    paths: Paths,
    processes: Processes,
    members: Vec<Member>,
    /// Those that were told to end and may not have.
    ending: Vec<Ending>,
    tasks: JoinSet<()>,
    /// Dropped, the instance is not ready any more.
    whole: Requirement,
}

/// One server that runs.
struct Member {
    server: Server,
    url: String,
    address: Address,
    /// The listening sockets once more, for whoever takes its place.
    bound: Bound,
    traffic: Arc<Traffic>,
    stop: CancellationToken,
    task: Id,
    ended: CancellationToken,
}

/// One that ends.
struct Ending {
    server: Server,
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
    address: Address,
    bound: Bound,
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
    pub(super) fn new(instance: &'a Instance, policy: Option<RestartPolicy>, processes: Processes) -> Self {
        let whole = instance.reporter().require("servers");
        whole.met();
        Self {
            instance,
            policy,
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
        let (mut wanted, mut failures) = (Vec::new(), Vec::new());
        for server in servers {
            match self.prepare_one(server, servers) {
                Ok(one) => wanted.push(one),
                Err(failure) => failures.push(failure.of(&format!("server {:?}", server.name))),
            }
        }
        match Failure::all(&failures) {
            Some(failure) => Err(failure),
            None => Ok(Prepared(wanted)),
        }
    }

    fn prepare_one(&self, server: &Server, servers: &[Server]) -> Result<Wanted, Failure> {
        if let Some(member) = self.members.iter().find(|member| is_untouched(&member.server, server)) {
            return Ok(Wanted { server: server.clone(), start: None, url: member.url.clone() });
        }
        let upstream = Upstream::parse(&server.upstream).map_err(Failure::usage)?;
        let tls = tls(self.instance, &upstream)?;
        let is_left = |member: &&Member| !servers.iter().any(|server| is_untouched(&member.server, server));
        let address: Address = server.listen.parse().map_err(Failure::usage)?;
        let bound = match self.members.iter().filter(is_left).find(|member| member.is_at(&address, &server.name)) {
            // Nobody who connects in the meantime is turned away.
            Some(member) => member.bound.try_clone().map_err(Failure::internal)?,
            None => bind_or_fail(&address, "listen:")?,
        };
        let url = relay::url(bound.addr, &tls, &upstream);
        Ok(Wanted { server: server.clone(), start: Some(Start { upstream, tls, address, bound }), url })
    }

    /// Runs what was prepared: ends those that are not wanted any more, and starts those that do not run yet.
    pub(super) fn change_to(&mut self, Prepared(wanted): Prepared) -> Result<Changes, Failure> {
        self.ending.retain(|ending| !ending.ended.is_cancelled());
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
        let mut failures = Vec::new();
        for (Wanted { server, start, url }, member) in wanted.into_iter().zip(members) {
            let member = match (member, start) {
                (Some(member), _) => Ok(member),
                (None, Some(start)) => self.start(server, start, url),
                (None, None) => continue,
            };
            match member {
                Ok(member) => self.members.push(member),
                Err(failure) => failures.push(failure),
            }
        }
        match Failure::all(&failures) {
            Some(failure) => Err(failure),
            None => Ok(changes),
        }
    }

    fn start(&mut self, server: Server, start: Start, url: String) -> Result<Member, Failure> {
        let Start { upstream, tls, address, bound } = start;
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let kept = bound.try_clone().map_err(Failure::internal)?;
        let traffic = Arc::new(self.paths.add(&server.name, server.critical));
        let probe = self.instance.probe(&server.name, Transport::Http);
        let process = self.process(&server, &probe);
        let config = Config { tls, server: process.as_ref().map(ServerProcess::state), ..Config::new(upstream) };
        relay::warn_of_any_host(&self.instance.settings, bound.addr);
        let relay = relay::relay(self.instance, probe, Arc::clone(&traffic), config, bound, stop.clone())?;
        // A port has room for one of them.
        let before: Vec<CancellationToken> = self
            .ending
            .iter()
            .filter(|other| other.server.name == server.name || other.server.upstream == server.upstream)
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
        Ok(Member { server, url, address, bound: kept, traffic, stop, task: task.id(), ended })
    }

    /// The process of a server that is to be started.
    fn process(&self, server: &Server, probe: &mcpscope_hooks::Probe) -> Option<ServerProcess> {
        let (program, arguments) = server.command.split_first()?;
        let mut command = Command::new(program);
        // Its stdout is a log like its stderr: ours may be a console exporter's.
        command.args(arguments).stdout(Stdio::from(io::stderr()));
        let process = ServerProcess::new(command, self.policy, probe.clone());
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).push(process.child());
        Some(process)
    }

    /// Names and URLs.
    pub(super) fn urls(&self) -> Vec<(String, String)> {
        self.members.iter().map(|member| (member.server.name.clone(), member.url.clone())).collect()
    }

    /// Waits until a relay has ended; if it was not told to, the instance is not ready any more. May be given up at any time.
    pub(super) async fn broken(&mut self) {
        let Some(ended) = self.tasks.join_next_with_id().await else { return std::future::pending().await };
        let (id, why) = match ended {
            Ok((id, ())) => (id, "it ended".to_owned()),
            Err(error) => (error.id(), error.to_string()),
        };
        if let Some(member) = self.members.iter().find(|member| member.task == id) {
            let reason = format!("{}: the relay ended", member.server.name);
            tracing::error!(server = member.server.name, why, "a relay ended");
            member.traffic.lost_server("the relay ended");
            self.whole.unmet(&reason);
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
    /// Whether it listens where a server of this name is to listen.
    fn is_at(&self, wanted: &Address, name: &str) -> bool {
        let is_its_port = match wanted.port {
            0 => self.server.name == name && self.address.port == 0,
            port => self.bound.addr.port() == port,
        };
        self.address.host.eq_ignore_ascii_case(&wanted.host) && is_its_port
    }

    fn end(self) -> Ending {
        self.traffic.retire();
        self.stop.cancel();
        Ending { server: self.server, ended: self.ended }
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

async fn all(tokens: &[CancellationToken]) {
    for token in tokens {
        token.cancelled().await;
    }
}
