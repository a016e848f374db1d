//! The connection that sshd gives a program: as it is, where it is a pipe or a socket.
//!
//! tokio's own standard input and output copy everything once more, in threads of their own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{Receiver, Sender};

/// How much may wait to be sent, as far as the system allows it: the usual 64 KiB of a pipe are two packets of ssh, and
/// the processor goes back and forth between this program and sshd for each of them.
const WAITING: usize = 1 << 20;

/// What comes from the client. Must be called within a tokio runtime.
pub(super) fn input() -> Box<dyn AsyncRead + Unpin + Send> {
    let input = io::stdin();
    if let Ok(pipe) = own(&input).and_then(Receiver::from_owned_fd) {
        return Box::new(pipe);
    }
    match own(&input).and_then(socket) {
        Ok(socket) => Box::new(socket),
        Err(_) => Box::new(tokio::io::stdin()),
    }
}

/// What goes to the client. Must be called within a tokio runtime.
pub(super) fn output() -> Box<dyn AsyncWrite + Unpin + Send> {
    let output = io::stdout();
    // Neither is needed for anything but speed.
    let _ = rustix::pipe::fcntl_setpipe_size(&output, WAITING);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&output, WAITING);
    if let Ok(pipe) = own(&output).and_then(Sender::from_owned_fd) {
        return Box::new(pipe);
    }
    match own(&output).and_then(socket) {
        Ok(socket) => Box::new(socket),
        Err(_) => Box::new(tokio::io::stdout()),
    }
}

fn own(file: &impl AsFd) -> io::Result<OwnedFd> {
    file.as_fd().try_clone_to_owned()
}

/// Fails for what is no socket, before anything is changed.
fn socket(file: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(file);
    stream.local_addr()?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
