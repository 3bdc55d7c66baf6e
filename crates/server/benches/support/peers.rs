//! Reverse proxies that ours is compared with: Debian's, which `cargo xtask bench` finds or fetches.

use std::env;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Children, Started};

/// A way to the upstream that accepts connections.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The proxy; none if there is none on the way.
    pub(crate) process: Option<Started>,
    pub(crate) addr: SocketAddr,
    /// What the proxy keeps there; removed with it.
    pub(crate) folder: Option<TempDir>,
}

/// nginx with a worker for each core; `buffering` is on by default, but an event stream is not passed as it comes then.
pub(crate) fn nginx(children: &Children, upstream: SocketAddr, buffering: &str) -> io::Result<Peer> {
    let addr = free_address()?;
    let config = format!(
        "daemon off;
        user root root;
        worker_processes auto;
        pid nginx.pid;
        error_log stderr error;
        events {{ worker_connections 1024; }}
        http {{
            access_log off;
            keepalive_requests 1000000000;
            client_body_temp_path client;
            proxy_temp_path proxy;
            fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi;
            scgi_temp_path scgi;
            upstream mcp {{
                server {upstream};
                keepalive 64;
                keepalive_requests 1000000000;
            }}
            server {{
                listen {addr};
                location / {{
                    proxy_pass http://mcp;
                    proxy_http_version 1.1;
                    proxy_set_header Connection \"\";
                    proxy_buffering {buffering};
                }}
            }}
        }}\n"
    );
    start(children, addr, "BENCH_NGINX", &config, &["-e", "stderr", "-p", ".", "-c"])
}

/// haproxy with a thread for each core, as it does by default.
pub(crate) fn haproxy(children: &Children, upstream: SocketAddr) -> io::Result<Peer> {
    let addr = free_address()?;
    let config = format!(
        "global
            maxconn 1000
        defaults
            mode http
            option http-keep-alive
            http-reuse always
            timeout connect 10s
            timeout client 1h
            timeout server 1h
        frontend clients
            bind {addr}
            default_backend mcp
        backend mcp
            server upstream {upstream}\n"
    );
    start(children, addr, "BENCH_HAPROXY", &config, &["-db", "-f"])
}

/// Starts the program that `variable` names, in a folder of its own with its `config`, and waits until it accepts.
fn start(children: &Children, addr: SocketAddr, variable: &str, config: &str, arguments: &[&str]) -> io::Result<Peer> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let program = env::var_os(variable).ok_or_else(|| {
        io::Error::other(format!("{variable} does not say where it is; `cargo xtask bench proxy` finds or fetches it"))
    })?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("config");
    fs::write(&file, config)?;
    let process = children.start(Command::new(&program).current_dir(folder.path()).args(arguments).arg(file))?;
    let start = Instant::now();
    while let Err(error) = TcpStream::connect(addr) {
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{} does not accept at {addr}: {error}", program.display())));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(Peer { process: Some(process), addr, folder: Some(folder) })
}

/// An address that nobody listens at: these programs cannot tell which one they were given.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
