//! The socket: connections are accepted, bounded in number and in patience, and ended in good order.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_service::Service as _;

use crate::serve::answer::Encrypted;
use crate::serve::metrics::Traffic;
use crate::serve::patience::Patient;
use crate::serve::tls::Tls;

/// How much of one client, and of all together, the server puts up with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at the same time; more wait in the system's queue.
    pub connections: usize,
    /// Connections of one address at the same time; more are closed at once.
    pub connections_per_client: usize,
    /// How long a client may take for the head of a request, or for its first one after connecting.
    pub head_patience: Duration,
    /// How long a client may take for the whole body of a request.
    pub body_patience: Duration,
    /// How long a client may take none of the bytes that are on their way to it.
    pub send_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_client: 128,
            head_patience: Duration::from_secs(30),
            body_patience: Duration::from_secs(30),
            send_patience: Duration::from_secs(120),
        }
    }
}

/// The longest head of a request, in bytes: tokens and signed cookies of others fit, floods do not.
const LONGEST_HEAD: usize = 64 << 10;
/// The longest wait after the system refused a connection, for want of file descriptors for example.
const BREATH: Duration = Duration::from_millis(100);

/// The server could not begin to listen.
#[derive(Debug, thiserror::Error)]
#[error("Cannot listen on {addr}")]
pub struct ServeError {
    addr: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// A socket that accepts connections as soon as [`Server::run`] is called.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<Tls>,
    limits: Limits,
    traffic: Arc<Traffic>,
}

impl Server {
    /// Takes the address. With port 0 the system chooses one: see [`Server::local_addr`].
    pub async fn bind(addr: SocketAddr) -> Result<Self, ServeError> {
        let failed = |source| ServeError { addr, source };
        Self::over(TcpListener::bind(addr).await.map_err(failed)?).map_err(failed)
    }

    /// Takes a socket that listens already, such as one that systemd handed over.
    pub fn inherit(listener: std::net::TcpListener) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::over(TcpListener::from_std(listener)?)
    }

    fn over(listener: TcpListener) -> std::io::Result<Self> {
        let local_addr = listener.local_addr()?;
        Ok(Self { listener, local_addr, tls: None, limits: Limits::default(), traffic: Arc::default() })
    }

    /// Speaks https instead of http.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Sets other limits than the usual ones.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Counts connections in `traffic`.
    #[must_use]
    pub fn counting_in(self, traffic: Arc<Traffic>) -> Self {
        Self { traffic, ..self }
    }

    /// The address that was taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers requests until `shutdown` completes and the answers under way have ended.
    ///
    /// Drop the future to accept no more; what is under way then ends with the runtime.
    pub async fn run(self, router: Router, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown);
        let connections = GracefulShutdown::new();
        let seats = Seats::new(self.limits, Arc::clone(&self.traffic));
        loop {
            let (stream, peer, seat) = tokio::select! {
                accepted = self.accept(&seats) => accepted,
                () = &mut shutdown => break,
            };
            let (router, tls, limits) = (router.clone(), self.tls.clone(), self.limits);
            let watcher = connections.watcher();
            tokio::spawn(async move {
                let _seat = seat;
                let connection = Connection { peer, router, limits, watcher };
                match tls {
                    None => connection.serve(stream).await,
                    Some(tls) => connection.serve_encrypted(&tls, stream).await,
                }
            });
        }
        drop(self.listener);
        connections.shutdown().await;
    }

    /// The next connection that there is room for.
    async fn accept(&self, seats: &Arc<Seats>) -> (TcpStream, SocketAddr, Seat) {
        loop {
            let permit = seats.permit().await;
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            };
            match seats.take(peer.ip().to_canonical(), permit) {
                Some(seat) => return (stream, peer, seat),
                None => {
                    self.traffic.turn_away();
                    tracing::warn!(%peer, "closed: this address has too many connections");
                }
            }
        }
    }
}

/// Answers whoever connects to `listener`, for as long as the future is polled.
pub async fn answer_at(listener: UnixListener, router: Router) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (input, output) = stream.into_split();
                    let router = router.clone();
                    connections.spawn(converse(move |request| router.clone().call(request), input, output));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

fn protocol() -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).max_buf_size(LONGEST_HEAD);
    protocol
}

/// Goes with a request of a client that has this program for itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Alone;

/// Answers the requests of one client until it ends: `input` and `output` are its connection, and nobody else is served.
///
/// Whoever could start this program may read what the router has; there is no limit to its patience. Contents are read
/// on the thread that asks for this, which waits for the disk meanwhile.
pub async fn answer_on(
    router: Router,
    input: impl AsyncRead + Unpin + Send + 'static,
    output: impl AsyncWrite + Unpin + Send + 'static,
) -> std::io::Result<()> {
    let answer = move |mut request: Request<Body>| {
        request.extensions_mut().insert(Alone);
        router.clone().call(request)
    };
    converse(answer, input, output).await
}

async fn converse<F>(
    answer: impl Fn(Request<Body>) -> F,
    input: impl AsyncRead + Unpin + Send + 'static,
    output: impl AsyncWrite + Unpin + Send + 'static,
) -> std::io::Result<()>
where
    F: Future<Output = Result<Response, Infallible>>,
{
    let service = service_fn(|request: Request<Incoming>| answer(request.map(Body::new)));
    let stream = TokioIo::new(tokio::io::join(input, output));
    // Whoever asks through a pipe may close his end once he has asked.
    let ended = protocol().half_close(true).header_read_timeout(None).serve_connection(stream, service).await;
    ended.map_err(std::io::Error::other)
}

/// One client on one connection.
struct Connection {
    peer: SocketAddr,
    router: Router,
    limits: Limits,
    watcher: Watcher,
}

impl Connection {
    async fn serve_encrypted(self, tls: &Tls, stream: TcpStream) {
        self.set_up(&stream);
        match tokio::time::timeout(self.limits.head_patience, tls.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.answer(stream, Some(Encrypted)).await,
            Ok(Err(error)) => tracing::info!(peer = %self.peer, %error, "no encryption could be agreed on"),
            Err(_) => tracing::info!(peer = %self.peer, "closed: no greeting came"),
        }
    }

    async fn serve(self, stream: TcpStream) {
        self.set_up(&stream);
        self.answer(stream, None).await;
    }

    fn set_up(&self, stream: &TcpStream) {
        // Head and content are written one after the other: with Nagle's algorithm the content would wait for the
        // client to acknowledge the head, which it delays by 40 ms. Without it, all works, more slowly.
        drop(stream.set_nodelay(true));
        // A client that takes nothing holds a file and two buffers; the kernel counts for us how long.
        let patience = u32::try_from(self.limits.send_patience.as_millis()).unwrap_or(u32::MAX);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, patience);
    }

    async fn answer(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, encrypted: Option<Encrypted>) {
        let (peer, router, patience) = (self.peer, self.router, self.limits.body_patience);
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(|body| Patient::over(body, patience));
            request.extensions_mut().insert(ConnectInfo(peer));
            if let Some(encrypted) = encrypted {
                request.extensions_mut().insert(encrypted);
            }
            router.clone().call(request)
        });
        let connection =
            protocol().header_read_timeout(self.limits.head_patience).serve_connection(TokioIo::new(stream), service);
        // Clients go when they please: that is no fault of ours, and nothing is left behind.
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%peer, %error, "the connection ended");
        }
    }
}

/// Counts connections, all together and by address.
struct Seats {
    all: Arc<Semaphore>,
    per_client: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
    traffic: Arc<Traffic>,
}

/// The right to one connection, given back when dropped.
struct Seat {
    seats: Arc<Seats>,
    client: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Seats {
    fn new(limits: Limits, traffic: Arc<Traffic>) -> Arc<Self> {
        let all = Arc::new(Semaphore::new(limits.connections.max(1)));
        Arc::new(Self { all, per_client: limits.connections_per_client.max(1), taken: Mutex::default(), traffic })
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        self.all.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    fn take(self: &Arc<Self>, client: IpAddr, permit: OwnedSemaphorePermit) -> Option<Seat> {
        let mut taken = self.taken();
        let count = taken.entry(client).or_default();
        if *count >= self.per_client {
            return None;
        }
        *count += 1;
        self.traffic.connect();
        Some(Seat { seats: Arc::clone(self), client, _permit: permit })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.traffic.disconnect();
        let mut taken = self.seats.taken();
        if let Some(count) = taken.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.client);
            }
        }
    }
}
