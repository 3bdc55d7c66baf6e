//! A server that speaks over stdio and takes no time of its own.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;

/// The server: answers all the lines of a read with one write.
pub(crate) fn respond(answer: fn(&[u8], &mut Vec<u8>)) -> io::Result<()> {
    let (mut input, mut output) = unbuffered()?;
    let mut buffer = vec![0; 64 * 1024];
    let (mut line, mut answers) = (Vec::new(), Vec::new());
    loop {
        let read = input.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        for piece in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if let [request @ .., b'\n'] = &line[..] {
                answer(request, &mut answers);
                answers.push(b'\n');
                line.clear();
            }
        }
        output.write_all(&answers)?;
        answers.clear();
    }
}

/// Standard input and output without the library's buffers.
pub(crate) fn unbuffered() -> io::Result<(File, File)> {
    let (input, output) = (io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?);
    Ok((input.into(), output.into()))
}
