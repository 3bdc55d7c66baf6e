//! The HTTP API of a started mcpscope, and the chaos experiments in it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use super::wait_for;

const CHAOS: &str = "/api/v1/chaos";

/// The body of the answer.
pub(crate) fn get(addr: SocketAddr, path: &str) -> io::Result<String> {
    ask(addr, "GET", path, "")
}

fn ask(addr: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    send(&mut stream, addr, method, path, body)?;
    answer(stream).map_err(|error| io::Error::other(format!("{method} {path} {body}: {error}")))
}

fn send(stream: &mut TcpStream, addr: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<()> {
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         x-mcpscope-request: 1\r\n{length}\r\n{body}"
    );
    stream.write_all(request.as_bytes())
}

/// The body of an answer that says that all is well.
fn answer(mut stream: TcpStream) -> io::Result<String> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.1 2"));
    body.map(|(_, body)| body.to_owned()).ok_or_else(|| io::Error::other(format!("answered with {answer:?}")))
}

/// The experiments of an instance that was started with `--no-auth`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chaos {
    /// Where its dashboard listens.
    pub(crate) addr: SocketAddr,
}

impl Chaos {
    /// Starts an experiment, which is active then.
    pub(crate) fn start(self, scenario: &str, parameters: &Value) -> io::Result<u64> {
        let wanted = json!({"scenario": scenario, "parameters": parameters}).to_string();
        let started = parsed(&ask(self.addr, "POST", &format!("{CHAOS}/experiments"), &wanted)?)?;
        started["id"]
            .as_u64()
            .ok_or_else(|| io::Error::other(format!("{scenario} was started without an id: {started}")))
    }

    /// Messages that were given the fault.
    fn injected(self, id: u64) -> io::Result<u64> {
        let test = self.test(id)?;
        test["details"]["injected"].as_u64().ok_or_else(|| io::Error::other(format!("nothing was injected in {test}")))
    }

    /// Waits until so many messages were given the fault.
    pub(crate) fn has_hit(self, id: u64, messages: u64) -> io::Result<()> {
        let what = format!("{messages} messages that experiment {id} has hit");
        wait_for(&what, || Ok((self.injected(id)? == messages).then_some(())))
    }

    /// Ends an experiment; its report.
    pub(crate) fn stop(self, id: u64) -> io::Result<Value> {
        ask(self.addr, "DELETE", &experiment(id), "")?;
        self.report(id)
    }

    /// The report of an experiment that ends by now.
    pub(crate) fn report(self, id: u64) -> io::Result<Value> {
        wait_for(&format!("the report of experiment {id}"), || {
            let report = &self.test(id)?["details"]["report"];
            Ok((!report.is_null()).then(|| report.clone()))
        })
    }

    /// A connection over which everything can be stopped.
    pub(crate) fn brake(self) -> io::Result<Brake> {
        let stream = TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        Ok(Brake { stream, addr: self.addr })
    }

    /// Allows experiments again.
    pub(crate) fn rearm(self) -> io::Result<()> {
        ask(self.addr, "POST", &format!("{CHAOS}/rearm"), "{}").map(drop)
    }

    fn test(self, id: u64) -> io::Result<Value> {
        parsed(&get(self.addr, &experiment(id))?)
    }
}

fn experiment(id: u64) -> String {
    format!("{CHAOS}/experiments/{id}")
}

fn parsed(answer: &str) -> io::Result<Value> {
    serde_json::from_str(answer).map_err(|error| io::Error::other(format!("{error} in {answer:?}")))
}

/// The emergency stop, which only has to be said.
#[derive(Debug)]
pub(crate) struct Brake {
    stream: TcpStream,
    addr: SocketAddr,
}

impl Brake {
    /// Stops everything, and waits for nothing.
    pub(crate) fn pull(&mut self) -> io::Result<()> {
        send(&mut self.stream, self.addr, "POST", &format!("{CHAOS}/emergency-stop"), "")
    }

    /// Whether it was heard.
    pub(crate) fn pulled(self) -> io::Result<()> {
        answer(self.stream).map(drop).map_err(|error| io::Error::other(format!("the emergency stop: {error}")))
    }
}
