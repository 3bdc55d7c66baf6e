//! An MCP server and an MCP client on `rmcp`, the official Rust SDK, for the end-to-end tests.
//!
//! `mcp-peer serve` serves over Streamable HTTP on a free port of the loopback address, whose URL is the one line that
//! it prints, and `mcp-peer stdio` over its standard input and output, both until they are killed or their input ends.
//! `mcp-peer client legacy|modern URL|COMMAND...` does everything once and prints a report of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a program for tests, whose test fails when it does"
)]
#![allow(deprecated, reason = "what is deprecated is spoken as long as there are peers that do")]

mod client;
mod fixture;
mod http;
mod rounds;
mod server;

use rmcp::ServiceExt as _;

use crate::server::{PeerServer, Shared};

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => http::serve(Shared::new()).await,
        ["stdio"] => {
            let (read, write) = rmcp::transport::io::stdio_pipes();
            let serving = PeerServer::new(Shared::new()).serve((read, write)).await.expect("a client that begins");
            serving.waiting().await.expect("the session's task ends by itself");
        }
        ["client", era, ref target @ ..] => println!("{}", client::run(era, target).await),
        _ => panic!("expected `serve`, `stdio` or `client`, not {arguments:?}"),
    }
}
