//! The client's side of a stdio server.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;

use crate::PATIENCE;

/// The client's ends of two pipes.
#[derive(Debug)]
pub struct StdioClient {
    /// What the client writes. Dropping it is the end of its input to the server.
    pub writer: PipeWriter,
    /// What the client reads.
    pub reader: PipeReader,
}

impl StdioClient {
    /// A client, and the other ends: what reads from the client, and what writes to it.
    ///
    /// # Panics
    /// The system has no pipes left.
    #[must_use]
    pub fn new() -> (Self, OwnedFd, OwnedFd) {
        let (input, writer) = io::pipe().expect("a pipe");
        let (reader, output) = io::pipe().expect("a pipe");
        (Self { writer, reader }, input.into(), output.into())
    }

    /// Writes all `pieces` and closes its writing end, while it reads to the end. A server that does not read to the end
    /// is no failure.
    ///
    /// # Panics
    /// The end does not come within [`PATIENCE`], or reading fails.
    #[must_use]
    pub fn converse<P: AsRef<[u8]> + Send + 'static>(self, pieces: Vec<P>) -> Vec<u8> {
        let Self { mut writer, reader } = self;
        thread::spawn(move || pieces.iter().try_for_each(|piece| writer.write_all(piece.as_ref())));
        read_to_end(reader)
    }
}

/// Reads to the end.
///
/// # Panics
/// The end does not come within [`PATIENCE`], or reading fails.
#[must_use]
pub fn read_to_end(mut reader: PipeReader) -> Vec<u8> {
    let (sender, received) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = reader.read_to_end(&mut bytes);
        // Nobody waits any more if it took too long.
        let _ = sender.send(read.map(|_| bytes));
    });
    received.recv_timeout(PATIENCE).expect("it takes too long").expect("it can be read")
}
