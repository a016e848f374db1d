//! A TCP relay with faults, for kernels that cannot delay packets: latency, connections that break, content held back.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

const NEVER: u64 = u64::MAX;

/// What is done to what passes. All numbers are of bytes in one direction: towards the client, where nothing else is said.
struct Faults {
    is_towards_server: bool,
    delay_us: AtomicU64,
    /// Each connection breaks after so many.
    cut_after: AtomicU64,
    /// All connections break, and none is made any more, after so many in all.
    cut_all_after: AtomicU64,
    /// Nothing passes after so many in all.
    hold_after: watch::Sender<u64>,
    passed: watch::Sender<u64>,
    /// Grows when all connections are to break now.
    generation: watch::Sender<u64>,
}

/// A running relay; ends when dropped.
pub(crate) struct Relay {
    port: u16,
    faults: Arc<Faults>,
    runtime: Option<Runtime>,
}

impl Relay {
    /// Leads to a port of this machine.
    pub(crate) fn to(target: u16) -> Self {
        Self::counting(target, false)
    }

    /// The same, with everything being about bytes towards the server.
    pub(crate) fn of_what_is_sent_to(target: u16) -> Self {
        Self::counting(target, true)
    }

    fn counting(target: u16, is_towards_server: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let faults = Arc::new(Faults {
            is_towards_server,
            delay_us: AtomicU64::new(0),
            cut_after: AtomicU64::new(NEVER),
            cut_all_after: AtomicU64::new(NEVER),
            hold_after: watch::channel(NEVER).0,
            passed: watch::channel(0).0,
            generation: watch::channel(0).0,
        });
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = faults.clone();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connect(client, target, shared.clone()));
            }
        });
        Self { port, faults, runtime: Some(runtime) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Everything takes so long in each direction.
    pub(crate) fn delay(&self, delay: Duration) {
        self.faults.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn cut_after(&self, bytes: u64) {
        self.faults.cut_after.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn cut_all_after(&self, bytes: u64) {
        self.faults.cut_all_after.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn hold_after(&self, bytes: u64) {
        self.faults.hold_after.send_replace(bytes);
    }

    pub(crate) fn wait_until_held(&self) {
        let begin = Instant::now();
        while self.passed() < *self.faults.hold_after.borrow() {
            assert!(begin.elapsed() < Duration::from_secs(60), "only {} bytes passed", self.passed());
            std::thread::yield_now();
        }
    }

    /// Breaks all connections.
    pub(crate) fn cut_now(&self) {
        self.faults.generation.send_modify(|generation| *generation += 1);
    }

    /// No more faults, and counts from 0.
    pub(crate) fn mend(&self) {
        self.faults.cut_after.store(NEVER, Ordering::Relaxed);
        self.faults.cut_all_after.store(NEVER, Ordering::Relaxed);
        self.faults.passed.send_replace(0);
        self.faults.hold_after.send_replace(NEVER);
    }

    /// Bytes that passed.
    pub(crate) fn passed(&self) -> u64 {
        *self.faults.passed.borrow()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn connect(client: TcpStream, target: u16, faults: Arc<Faults>) {
    if faults.is_over() {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let mut generation = faults.generation.subscribe();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, &faults, faults.is_towards_server) => {}
        () = pump(from_server, to_client, &faults, !faults.is_towards_server) => {}
        _ = generation.changed() => {}
    }
}

/// Passes on what comes, each piece at its time, so that a delay costs no rate.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, faults: &Faults, counts: bool) {
    let (tell, mut told) = mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(256);
    let read = async move {
        let mut piece = vec![0; 16 << 10];
        while let Ok(len @ 1..) = from.read(&mut piece).await {
            let at = tokio::time::Instant::now() + Duration::from_micros(faults.delay_us.load(Ordering::Relaxed));
            if tell.send((at, piece[..len].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let write = async {
        let mut of_this = 0;
        while let Some((at, piece)) = told.recv().await {
            tokio::time::sleep_until(at).await;
            if counts {
                faults.pass(piece.len() as u64).await;
                of_this += piece.len() as u64;
                if of_this > faults.cut_after.load(Ordering::Relaxed) || faults.is_over() {
                    return;
                }
            }
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(async {
        tokio::select! { () = write => {} () = async { read.await; std::future::pending().await } => {} }
    });
}

impl Faults {
    fn is_over(&self) -> bool {
        *self.passed.borrow() > self.cut_all_after.load(Ordering::Relaxed)
    }

    async fn pass(&self, bytes: u64) {
        let mut hold = self.hold_after.subscribe();
        let _ = hold.wait_for(|limit| *self.passed.borrow() < *limit).await;
        self.passed.send_modify(|passed| *passed += bytes);
    }
}
