//! Connections that a fault leads through a network: what the relay does with them. The network is the test's; the kernel's is
//! tried end to end.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use mcpscope_chaos::{ChaosTarget, Network, Order, Packets, Parameters, Progress, Scenario, TargetError, Victim};
use mcpscope_core::FaultId;
use mcpscope_test_support::{Wire, eventually, http, within};

use crate::common::Chaos;
use crate::faults::Faulty;
use crate::{Events, call, event, json, post, result};

/// What a network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Brings {
    All,
    Nothing,
}

/// A network that brings everything, or nothing at all.
#[derive(Debug)]
pub(crate) struct Plain {
    brings: Brings,
    is_up: AtomicBool,
    pairs: AtomicU64,
    /// The ends that lead nowhere.
    kept: Mutex<Vec<TcpStream>>,
}

impl Plain {
    fn new(brings: Brings) -> Arc<Self> {
        Arc::new(Self { brings, is_up: AtomicBool::new(true), pairs: AtomicU64::new(0), kept: Mutex::default() })
    }

    /// The one that faults of this engine have.
    pub(crate) fn register(chaos: &Chaos, brings: Brings) -> Arc<Self> {
        let network = Self::new(brings);
        register(chaos, network.clone());
        network
    }

    pub(crate) fn pairs(&self) -> u64 {
        self.pairs.load(Ordering::SeqCst)
    }
}

fn connected() -> io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok([near, far])
}

impl Network for Plain {
    fn pair(&self) -> io::Result<[TcpStream; 2]> {
        self.pairs.fetch_add(1, Ordering::SeqCst);
        let [near, far] = connected()?;
        if self.brings == Brings::All {
            return Ok([near, far]);
        }
        let [here, there] = connected()?;
        self.kept.lock().unwrap().extend([far, here]);
        Ok([near, there])
    }

    fn is_up(&self) -> bool {
        self.is_up.load(Ordering::SeqCst)
    }
}

/// A network whose helper is silent, until it is told to speak.
#[derive(Debug, Default)]
struct Silent {
    asked: AtomicU64,
    speaks: Mutex<bool>,
    told: Condvar,
}

impl Network for Silent {
    fn pair(&self) -> io::Result<[TcpStream; 2]> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let _speaks = self.told.wait_while(self.speaks.lock().unwrap(), |speaks| !*speaks).unwrap();
        Err(io::ErrorKind::TimedOut.into())
    }

    fn is_up(&self) -> bool {
        true
    }
}

/// Has it speak when it is dropped: what waits for it would keep the runtime from its end.
struct Told(Arc<Silent>);

impl Drop for Told {
    fn drop(&mut self) {
        *self.0.speaks.lock().unwrap() = true;
        self.0.told.notify_all();
    }
}

/// The faults of this engine have this network.
fn register(chaos: &Chaos, network: Arc<dyn Network>) {
    chaos.controller.register(Arc::new(Target(network)), Instant::now());
}

/// Has one network for whatever is asked for.
#[derive(Debug)]
struct Target(Arc<dyn Network>);

impl ChaosTarget for Target {
    fn name(&self) -> &str {
        "network"
    }

    fn is_critical(&self) -> bool {
        false
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::PacketLoss
    }

    fn check(&self, _: Scenario, _: &Parameters, _: &[Victim]) -> Result<(), TargetError> {
        if self.0.is_up() { Ok(()) } else { Err(TargetError("there is none".to_owned())) }
    }

    fn apply(&self, _: &Order<'_>) -> Result<(), TargetError> {
        Ok(())
    }

    fn undo(&self, _: FaultId) -> Result<(), TargetError> {
        Ok(())
    }

    fn left_over(&self, _: FaultId) -> Option<String> {
        None
    }

    fn progress(&self, _: FaultId) -> Progress {
        Progress { packets: Some(Packets { sent: 3, dropped: 1 }), ..Progress::default() }
    }

    fn network(&self, _: FaultId) -> Option<Arc<dyn Network>> {
        Some(self.0.clone())
    }
}

pub(crate) const NETEM: &[&str] = &["backend=netem", "intensity=0.25"];

async fn stage(brings: Brings) -> (Faulty, Arc<Plain>) {
    let stage = Faulty::new().await;
    let network = Plain::register(&stage.chaos, brings);
    (stage, network)
}

/// One more call on these connections.
async fn exchange((client, server): (&mut Wire, &mut Wire), id: u32) {
    client.write(&post(&[], &call(id, "echo"))).await.unwrap();
    let seen = within(server.reader.message()).await.unwrap().unwrap();
    assert_eq!(seen.body, call(id, "echo").as_bytes());
    answer((client, server), id).await;
}

async fn answer((client, server): (&mut Wire, &mut Wire), id: u32) {
    server.write(&json(&[], &result(id))).await.unwrap();
    let answer = within(client.reader.message()).await.unwrap().unwrap();
    assert_eq!(answer.body, result(id).as_bytes());
}

fn calls(injected: bool) -> String {
    format!(
        "mcpscope_tool_call_duration_seconds_count{{server=\"s\",tool=\"echo\",outcome=\"ok\",injected=\"{injected}\"}}"
    )
}

#[tokio::test]
async fn new_connections_and_those_that_are_there_are_led_until_the_end() {
    let (stage, network) = stage(Brings::All).await;
    let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
    answer((&mut client, &mut server), 1).await;
    let fault = stage.chaos.start("packet_loss", NETEM);
    exchange((&mut client, &mut server), 2).await;
    exchange((&mut client, &mut server), 3).await;
    assert_eq!(network.pairs(), 1, "the connection that was there is led, once");
    let (mut other, mut others) = stage.asked(&call(4, "echo")).await;
    answer((&mut other, &mut others), 4).await;
    assert_eq!(network.pairs(), 2, "the new one is led");
    assert_eq!(stage.chaos.stop(fault).await, (2, 2));
    exchange((&mut client, &mut server), 5).await;
    assert_eq!(network.pairs(), 2, "it goes on without");
    stage.bench.becomes(&calls(true), 3).await;
    stage.bench.becomes(&calls(false), 2).await;
    let report = stage.chaos.controller.report(fault.0, Instant::now()).unwrap();
    assert_eq!(report.injection.packets, Some(Packets { sent: 3, dropped: 1 }));
    assert_eq!((report.injection.requested_intensity, report.injection.achieved_intensity), (0.25, Some(0.25)));
    assert_eq!((report.injection.connections_chosen, report.replay), (2, None));
}

#[tokio::test]
async fn what_is_on_the_way_goes_on_when_the_fault_ends() {
    let (stage, network) = stage(Brings::Nothing).await;
    let fault = stage.chaos.start("packet_loss", NETEM);
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let mut server = within(stage.upstream.accept()).await;
    // It was sent, and is not to be expected.
    stage.chaos.hits(fault, 1).await;
    assert_eq!(network.pairs(), 1);
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), server.reader.message()).await;
    assert!(early.is_err(), "{early:?}");
    stage.chaos.stop(fault).await;
    assert_eq!(within(server.reader.message()).await.unwrap().unwrap().body, call(1, "echo").as_bytes());
    answer((&mut client, &mut server), 1).await;
}

#[tokio::test]
async fn an_answer_goes_on_when_everything_is_stopped() {
    let (stage, _) = stage(Brings::Nothing).await;
    let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
    answer((&mut client, &mut server), 1).await;
    let fault = stage.chaos.start("packet_loss", NETEM);
    client.write(&post(&[], &call(2, "echo"))).await.unwrap();
    stage.chaos.hits(fault, 1).await;
    server.write(&json(&[], &result(2))).await.unwrap();
    stage.chaos.controller.emergency_stop(mcpscope_chaos::Cause::Person, Instant::now());
    assert_eq!(within(server.reader.message()).await.unwrap().unwrap().body, call(2, "echo").as_bytes());
    assert_eq!(within(client.reader.message()).await.unwrap().unwrap().body, result(2).as_bytes());
}

#[tokio::test]
async fn a_network_that_is_gone_holds_nobody_up() {
    let (stage, network) = stage(Brings::Nothing).await;
    let fault = stage.chaos.start("packet_loss", NETEM);
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let mut server = within(stage.upstream.accept()).await;
    stage.chaos.hits(fault, 1).await;
    network.is_up.store(false, Ordering::SeqCst);
    assert_eq!(within(server.reader.message()).await.unwrap().unwrap().body, call(1, "echo").as_bytes());
    answer((&mut client, &mut server), 1).await;
    exchange((&mut client, &mut server), 2).await;
    assert_eq!(network.pairs(), 1);
}

#[tokio::test]
async fn an_event_stream_goes_on_over_the_end() {
    for brings in [Brings::All, Brings::Nothing] {
        let (stage, network) = stage(brings).await;
        let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
        answer((&mut client, &mut server), 1).await;
        let fault = stage.chaos.start("packet_loss", NETEM);
        client.write(&post(&[], &call(2, "echo"))).await.unwrap();
        stage.chaos.hits(fault, 1).await;
        let (first, last) = (call(5, "ask"), result(2));
        server.write(&[http::stream_head("200 OK", &[]), event(&first)].concat()).await.unwrap();
        if brings == Brings::Nothing {
            stage.chaos.stop(fault).await;
        }
        assert_eq!(within(server.reader.message()).await.unwrap().unwrap().body, call(2, "echo").as_bytes());
        let (_, mut events) = within(Events::open(client.reader)).await;
        within(events.expect(&first)).await;
        if brings == Brings::All {
            stage.chaos.stop(fault).await;
        }
        server.write(&[event(&last), http::LAST_CHUNK.to_vec()].concat()).await.unwrap();
        within(events.expect(&last)).await;
        assert_eq!(network.pairs(), 1);
    }
}

#[tokio::test]
async fn what_is_larger_than_what_may_be_on_the_way_arrives_whole() {
    for brings in [Brings::All, Brings::Nothing] {
        let (stage, _) = stage(brings).await;
        let fault = stage.chaos.start("packet_loss", NETEM);
        let body = call(1, &"x".repeat(3 << 20));
        let mut client = stage.proxy.connect().await;
        let (mut writer, request) = (client.writer, post(&[], &body));
        let upload = tokio::spawn(async move { writer.write(&request).await.map(|()| writer) });
        let mut server = within(stage.upstream.accept()).await;
        stage.chaos.hits(fault, 1).await;
        if brings == Brings::Nothing {
            stage.chaos.stop(fault).await;
        }
        assert!(within(server.reader.message()).await.unwrap().unwrap().body == body.as_bytes(), "{brings:?}");
        let large = result(1).replace("{}", &format!("{{\"text\":\"{}\"}}", "y".repeat(3 << 20)));
        server.write(&json(&[], &large)).await.unwrap();
        let heard = within(client.reader.message()).await.unwrap().unwrap().body;
        assert!(heard == large.as_bytes(), "{brings:?}");
        client.writer = within(upload).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn who_leaves_is_told_to_the_other_side_whatever_the_network_brings() {
    let (stage, _) = stage(Brings::Nothing).await;
    let fault = stage.chaos.start("packet_loss", NETEM);
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    let mut server = within(stage.upstream.accept()).await;
    stage.chaos.hits(fault, 1).await;
    drop(client);
    assert_eq!(within(server.reader.message()).await.unwrap().unwrap().body, call(1, "echo").as_bytes());
    assert_eq!(within(server.reader.closed()).await.unwrap(), b"");
    // Of a server that resets there is nothing to come, be it in the network or not.
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(2, "echo"))).await.unwrap();
    let server = within(stage.upstream.accept()).await;
    stage.chaos.hits(fault, 2).await;
    server.reset();
    assert_eq!(within(client.reader.head()).await.unwrap().unwrap().status(), 502);
    stage.chaos.stop(fault).await;
}

#[tokio::test]
async fn what_a_client_sends_and_does_not_wait_for_arrives_whatever_the_network_brings() {
    let (stage, _) = stage(Brings::Nothing).await;
    let first = stage.chaos.start("packet_loss", NETEM);
    let second = stage.chaos.start("packet_loss", NETEM);
    let notification = format!(r#"{{"jsonrpc":"2.0","method":"notifications/{}"}}"#, "x".repeat(50_000));
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &notification)).await.unwrap();
    let mut server = within(stage.upstream.accept()).await;
    stage.chaos.hits(first, 1).await;
    stage.chaos.hits(second, 1).await;
    drop(client);
    let seen = within(server.reader.message()).await.unwrap().unwrap();
    assert!(seen.body == notification.as_bytes(), "{} of {} bytes", seen.body.len(), notification.len());
    assert_eq!(within(server.reader.closed()).await.unwrap(), b"");
}

#[tokio::test]
async fn a_network_that_is_silent_takes_few_threads_and_holds_up_nobody_who_leaves_or_when_it_is_over() {
    let (stage, network) = (Faulty::new().await, Arc::new(Silent::default()));
    register(&stage.chaos, network.clone());
    let _told = Told(network.clone());
    stage.chaos.start("packet_loss", NETEM);
    let mut wires = Vec::new();
    for id in 0..12 {
        let mut client = stage.proxy.connect().await;
        client.write(&post(&[], &call(id, "echo"))).await.unwrap();
        wires.push((id, client, within(stage.upstream.accept()).await));
    }
    eventually(|| if network.asked.load(Ordering::SeqCst) > 0 { Ok(()) } else { Err("nobody asks it") }).await;
    for who in [11, 0] {
        let (id, client, mut server) = wires.remove(who);
        drop(client);
        assert_eq!(within(server.reader.message()).await.unwrap().unwrap().body, call(id, "echo").as_bytes());
        assert_eq!(within(server.reader.closed()).await.unwrap(), b"");
    }
    stage.chaos.controller.emergency_stop(mcpscope_chaos::Cause::Person, Instant::now());
    for (id, mut client, mut server) in wires {
        assert_eq!(within(server.reader.message()).await.unwrap().unwrap().body, call(id, "echo").as_bytes());
        answer((&mut client, &mut server), id).await;
    }
    let asked = network.asked.load(Ordering::SeqCst);
    assert!((1..=4).contains(&asked), "{asked} threads");
}

#[tokio::test]
async fn two_faults_lead_one_through_the_other() {
    let (stage, network) = stage(Brings::All).await;
    let first = stage.chaos.start("packet_loss", NETEM);
    let (mut client, mut server) = stage.asked(&call(1, "echo")).await;
    answer((&mut client, &mut server), 1).await;
    let second = stage.chaos.start("packet_loss", NETEM);
    exchange((&mut client, &mut server), 2).await;
    assert_eq!(network.pairs(), 2);
    assert_eq!(stage.chaos.stop(first).await, (1, 1));
    exchange((&mut client, &mut server), 3).await;
    assert_eq!(stage.chaos.stop(second).await, (1, 1));
    exchange((&mut client, &mut server), 4).await;
    assert_eq!(network.pairs(), 2);
}

#[tokio::test]
async fn without_a_network_it_is_refused() {
    let (stage, network) = stage(Brings::All).await;
    network.is_up.store(false, Ordering::SeqCst);
    let request = mcpscope_chaos::Request::new("packet_loss").with("backend", "netem");
    let refused = stage.chaos.controller.start(&request, Instant::now()).unwrap_err().to_string();
    assert_eq!(refused, "there is none");
    let elsewhere = request.with("transport", "stdio");
    let refused = stage.chaos.controller.start(&elsewhere, Instant::now()).unwrap_err().to_string();
    assert!(refused.contains("a pipe has none: expected backend=message, or transport=http"), "{refused}");
    let latency = mcpscope_chaos::Request::new("latency_injection").with("backend", "netem");
    let refused = stage.chaos.controller.start(&latency, Instant::now()).unwrap_err().to_string();
    assert!(refused.contains("backend=netem is not available here"), "{refused}");
}
