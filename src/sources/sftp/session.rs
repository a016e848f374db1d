//! One conversation in the SSH file transfer protocol, version 3, as every sshd speaks it: only what reading needs.
//!
//! <https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02>. Written here because it is small, and because
//! the crates that speak it bring a client of ssh of their own, while ours is the user's.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The version that is spoken.
const VERSION: u32 = 3;
/// Longer packets are nonsense: a server sends no more than was asked for.
const LONGEST_PACKET: u32 = 512 << 10;
/// To open a file for reading.
const READ: u32 = 1;
/// Which attributes of a file are told.
const HAS_SIZE: u32 = 1;
const HAS_OWNER: u32 = 2;
const HAS_MODE: u32 = 4;

/// What packets are.
mod kind {
    pub(super) const INIT: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const OPEN: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const READ: u8 = 5;
    pub(super) const STAT: u8 = 17;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const ATTRS: u8 = 105;
}

/// Why the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The file ends before.
    End,
    Missing,
    Forbidden(String),
    Other(String),
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    Refused(Refusal),
    /// The conversation is over; what the program said last.
    Broken(String),
    /// An answer that makes no sense.
    Nonsense(String),
}

/// A file as the server describes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    /// Whether it is a plain file, as far as the server tells.
    pub(super) is_file: bool,
}

/// A running conversation; its program is ended when dropped.
#[derive(Debug)]
pub(super) struct Session {
    _program: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    last_words: Option<tokio::task::JoinHandle<String>>,
    next: u32,
    /// Answers that came before they were waited for.
    early: HashMap<u32, (u8, Bytes)>,
    stall: Duration,
}

impl Session {
    /// Starts `command`, which speaks the protocol on its standard input and output, and greets it.
    pub(super) async fn begin(command: &[OsString], stall: Duration) -> Result<Self, Trouble> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Trouble::Broken("there is no program to start".to_owned()));
        };
        let failed =
            |error: io::Error| Trouble::Broken(format!("{} cannot be started: {error}", program.to_string_lossy()));
        let mut starting = Command::new(program);
        starting.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = starting.kill_on_drop(true).spawn().map_err(failed)?;
        let (Some(input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Trouble::Broken("its input and output are gone".to_owned()));
        };
        let last_words = Some(tokio::spawn(async move {
            let (mut lines, mut last) = (BufReader::new(errors).lines(), String::new());
            while let Ok(Some(line)) = lines.next_line().await {
                if !line.trim().is_empty() {
                    last = line;
                }
            }
            last
        }));
        let output = BufReader::with_capacity(1 << 18, output);
        let early = HashMap::new();
        let mut session = Self { _program: child, input, output, last_words, next: 0, early, stall };
        session.greet().await?;
        Ok(session)
    }

    async fn greet(&mut self) -> Result<(), Trouble> {
        let mut packet = BytesMut::new();
        packet.put_u8(kind::INIT);
        packet.put_u32(VERSION);
        let written = self.write(&packet).await;
        // Who is gone already has said something else than sftp before, or nothing.
        let (answered, mut rest) = match (self.packet().await, written) {
            (Err(Trouble::Broken(_)), Err(trouble)) => return Err(trouble),
            (answer, _) => answer?,
        };
        match (answered, take_u32(&mut rest)) {
            (kind::VERSION, Some(VERSION)) => Ok(()),
            (kind::VERSION, Some(other)) => Err(Trouble::Nonsense(format!("it speaks version {other} of sftp"))),
            _ => Err(Trouble::Nonsense("it does not speak sftp".to_owned())),
        }
    }

    /// Describes what lies at each of `paths`, links followed; asks all of them before it waits.
    pub(super) async fn describe_all(&mut self, paths: &[String]) -> Result<Vec<Result<Attributes, Refusal>>, Trouble> {
        /// So many questions fit into any pipe.
        const TOGETHER: usize = 64;
        let mut described = Vec::with_capacity(paths.len());
        for paths in paths.chunks(TOGETHER) {
            let mut asked = Vec::with_capacity(paths.len());
            for path in paths {
                asked.push(self.ask(kind::STAT, |packet| put_text(packet, path.as_bytes())).await?);
            }
            for id in asked {
                let answer = self.answer(id).await?;
                described.push(match attributes(answer) {
                    Ok(attributes) => Ok(attributes),
                    Err(Trouble::Refused(refusal)) => Err(refusal),
                    Err(trouble) => return Err(trouble),
                });
            }
        }
        Ok(described)
    }

    /// Opens the file at `path` for reading; returns its handle.
    pub(super) async fn open(&mut self, path: &str) -> Result<Bytes, Trouble> {
        let id = self.ask(kind::OPEN, |packet| {
            put_text(packet, path.as_bytes());
            packet.put_u32(READ);
            packet.put_u32(0);
        });
        let (answered, mut rest) = {
            let id = id.await?;
            self.answer(id).await?
        };
        match answered {
            kind::HANDLE => take_text(&mut rest).ok_or_else(|| Trouble::Nonsense("a handle is cut off".to_owned())),
            _ => Err(refused(answered, rest)),
        }
    }

    /// Asks for `len` bytes from `offset` on, without waiting for them.
    pub(super) async fn ask_for(&mut self, handle: &Bytes, offset: u64, len: u32) -> Result<u32, Trouble> {
        let ask = |packet: &mut BytesMut| {
            put_text(packet, handle);
            packet.put_u64(offset);
            packet.put_u32(len);
        };
        self.ask(kind::READ, ask).await
    }

    /// The bytes that were asked for by that number: never none, and perhaps fewer.
    pub(super) async fn bytes(&mut self, id: u32) -> Result<Bytes, Trouble> {
        let (answered, mut rest) = self.answer(id).await?;
        match answered {
            kind::DATA => take_text(&mut rest)
                .filter(|bytes| !bytes.is_empty())
                .ok_or_else(|| Trouble::Nonsense("it sent data without data".to_owned())),
            _ => Err(refused(answered, rest)),
        }
    }

    /// Closes a file.
    pub(super) async fn close(&mut self, handle: &Bytes) -> Result<(), Trouble> {
        let id = self.ask(kind::CLOSE, |packet| put_text(packet, handle)).await?;
        self.answer(id).await.map(drop)
    }

    async fn ask(&mut self, what: u8, rest: impl FnOnce(&mut BytesMut)) -> Result<u32, Trouble> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let mut packet = BytesMut::new();
        packet.put_u8(what);
        packet.put_u32(id);
        rest(&mut packet);
        self.write(&packet).await?;
        Ok(id)
    }

    async fn write(&mut self, packet: &[u8]) -> Result<(), Trouble> {
        let mut whole = BytesMut::with_capacity(packet.len() + 4);
        whole.put_u32(packet.len() as u32);
        whole.put_slice(packet);
        match tokio::time::timeout(self.stall, self.input.write_all(&whole)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.broken(&error.to_string()).await),
            Err(_) => Err(silent()),
        }
    }

    async fn answer(&mut self, id: u32) -> Result<(u8, Bytes), Trouble> {
        loop {
            if let Some(answer) = self.early.remove(&id) {
                return Ok(answer);
            }
            let (answered, mut rest) = self.packet().await?;
            let whose = take_u32(&mut rest).ok_or_else(|| Trouble::Nonsense("an answer to nothing".to_owned()))?;
            if self.early.insert(whose, (answered, rest)).is_some() {
                return Err(Trouble::Nonsense("two answers to one question".to_owned()));
            }
        }
    }

    async fn packet(&mut self) -> Result<(u8, Bytes), Trouble> {
        let read = tokio::time::timeout(self.stall, async {
            let len = self.output.read_u32().await?;
            if len == 0 || len > LONGEST_PACKET {
                return Ok(Err(len));
            }
            let mut packet = vec![0; len as usize];
            self.output.read_exact(&mut packet).await?;
            Ok::<_, io::Error>(Ok(Bytes::from(packet)))
        })
        .await;
        match read {
            Ok(Ok(Ok(mut packet))) => Ok((packet.get_u8(), packet)),
            Ok(Ok(Err(len))) => Err(Trouble::Nonsense(format!("it does not speak sftp: a packet of {len} bytes"))),
            Ok(Err(error)) => Err(self.broken(&error.to_string()).await),
            Err(_) => Err(silent()),
        }
    }

    /// What the program said when it ended, which is better than that it ended.
    async fn broken(&mut self, otherwise: &str) -> Trouble {
        let otherwise = || Trouble::Broken(otherwise.to_owned());
        // Words are said once.
        let Some(last_words) = self.last_words.take() else { return otherwise() };
        let said = tokio::time::timeout(Duration::from_secs(1), last_words).await;
        let said = said.ok().and_then(Result::ok).filter(|said| !said.is_empty());
        said.map_or_else(otherwise, Trouble::Broken)
    }
}

fn silent() -> Trouble {
    Trouble::Broken("no sign of life for too long".to_owned())
}

fn attributes((answered, mut rest): (u8, Bytes)) -> Result<Attributes, Trouble> {
    /// The part of a mode that says what it is, and what plain files have there.
    const KIND: u32 = 0o170_000;
    const FILE: u32 = 0o100_000;
    if answered != kind::ATTRS {
        return Err(refused(answered, rest));
    }
    let cut = || Trouble::Nonsense("a description is cut off".to_owned());
    let told = take_u32(&mut rest).ok_or_else(cut)?;
    let size = (told & HAS_SIZE != 0).then(|| rest.try_get_u64().map_err(|_| cut())).transpose()?;
    if told & HAS_OWNER != 0 {
        rest.try_get_u64().map_err(|_| cut())?;
    }
    let mode = (told & HAS_MODE != 0).then(|| take_u32(&mut rest).ok_or_else(cut)).transpose()?;
    Ok(Attributes { size, is_file: mode.is_none_or(|mode| mode & KIND == FILE) })
}

fn refused(answered: u8, mut rest: Bytes) -> Trouble {
    let code = take_u32(&mut rest).filter(|_| answered == kind::STATUS);
    let message = || {
        let text = take_text(&mut rest.clone()).unwrap_or_default();
        super::printable(&String::from_utf8_lossy(&text))
    };
    Trouble::Refused(match code {
        Some(1) => Refusal::End,
        Some(2) => Refusal::Missing,
        Some(3) => Refusal::Forbidden(message()),
        Some(_) => Refusal::Other(message()),
        None => return Trouble::Nonsense(format!("an answer of an unknown kind, {answered}")),
    })
}

fn take_u32(from: &mut Bytes) -> Option<u32> {
    from.try_get_u32().ok()
}

fn take_text(from: &mut Bytes) -> Option<Bytes> {
    let len = take_u32(from)? as usize;
    (from.len() >= len).then(|| from.split_to(len))
}

fn put_text(packet: &mut BytesMut, text: &[u8]) {
    packet.put_u32(text.len() as u32);
    packet.put_slice(text);
}
