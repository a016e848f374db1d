//! A machine that wants one large file, which the library itself brings: without the program around it, so
//! that a test can stop it, count and listen.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::apply::{self, Means, Outcome};
use larder::artifact::{Artifact, File, Origin};
use larder::digest::{Digests, Sha256};
use larder::facts::Facts;
use larder::inventory::Inventory;
use larder::lock::Lock;
use larder::monitor::{Event, Monitor};
use larder::observe::{Proof, observe};
use larder::plan::{Outlook, Plan, plan};
use larder::retry::RetryPolicy;
use larder::sources::{Manners, SourceSettings, Sources, Timeouts};
use larder::stores::Stores;
use tokio_util::sync::CancellationToken;

/// Remembers what was told.
#[derive(Default)]
pub(crate) struct Heard {
    told: Mutex<Vec<String>>,
    meanwhile: Mutex<Option<Meanwhile>>,
}

/// Done by another program whenever something is told.
type Meanwhile = Box<dyn Fn(&Event<'_>) + Send>;

impl Monitor for Heard {
    fn event(&self, event: Event<'_>) {
        self.told.lock().unwrap().push(format!("{event:?}"));
        if let Some(meanwhile) = &*self.meanwhile.lock().unwrap() {
            meanwhile(&event);
        }
    }
}

/// The machine; its folder goes when it is dropped.
pub(crate) struct OneFile {
    dir: tempfile::TempDir,
    pub(crate) content: Arc<Vec<u8>>,
    pub(crate) sha256: Sha256,
    pub(crate) facts: Arc<Facts>,
    pub(crate) connections: usize,
    pub(crate) first_connections: usize,
    heard: Arc<Heard>,
}

impl OneFile {
    /// A machine without the file.
    pub(crate) fn new(content: &Arc<Vec<u8>>) -> Self {
        Self {
            dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            content: content.clone(),
            sha256: Sha256::of(content),
            facts: Arc::new(Facts::in_memory().unwrap()),
            connections: 4,
            first_connections: 1,
            heard: Arc::default(),
        }
    }

    /// Where the file belongs.
    pub(crate) fn place(&self) -> PathBuf {
        self.dir.path().join("store/model.bin")
    }

    /// The unfinished content.
    pub(crate) fn partial(&self) -> PathBuf {
        self.dir.path().join(format!("store/.larder/{}.partial", self.sha256))
    }

    /// Its journal.
    pub(crate) fn journal(&self) -> PathBuf {
        self.partial().with_extension("journal")
    }

    /// What was told that begins with `kind`.
    pub(crate) fn heard(&self, kind: &str) -> Vec<String> {
        self.heard.told.lock().unwrap().iter().filter(|event| event.starts_with(kind)).cloned().collect()
    }

    /// The most connections that were open at the same time.
    pub(crate) fn most_connections(&self) -> usize {
        let count = |told: &String| told.rsplit("count: ").next()?.trim_end_matches(" }").parse().ok();
        self.heard("Connections").iter().filter_map(count).max().unwrap_or(0)
    }

    /// Whenever something is told, this happens.
    pub(crate) fn meanwhile(&self, meanwhile: impl Fn(&Event<'_>) + Send + 'static) {
        *self.heard.meanwhile.lock().unwrap() = Some(Box::new(meanwhile));
    }

    /// What is known of the file's content now.
    pub(crate) fn proof(&self) -> Proof {
        let lock = self.lock(&["http://127.0.0.1:1/".to_owned()]);
        let wanted: Vec<&Artifact> = lock.artifacts.iter().collect();
        observe(&self.stores(), &wanted, &self.facts, false).unwrap()[0].proofs[0].clone()
    }

    fn stores(&self) -> Stores {
        let path = self.dir.path().join("store").display().to_string();
        let text = format!("[stores]\nplain = {{ layout = \"folder\", path = {path:?} }}\n");
        let inventory = Inventory::parse(&self.dir.path().join("inventory.toml"), &text).unwrap();
        Stores::open(&inventory, "here", self.dir.path())
    }

    fn lock(&self, urls: &[String]) -> Lock {
        let file = File {
            size: Some(self.content.len() as u64),
            digests: Digests::sha256(self.sha256),
            source: Some(Box::new(urls[0].parse().unwrap())),
            mirrors: urls[1..].iter().map(|url| url.parse().unwrap()).collect(),
            ..File::named("model.bin".parse().unwrap())
        };
        let artifact = Artifact {
            name: "model".to_owned(),
            store: "plain".to_owned(),
            source: urls[0].parse().unwrap(),
            declared: String::new(),
            revision: None,
            origin: Origin::Upstream,
            complete: true,
            whole: false,
            irreplaceable: false,
            ollama: None,
            pattern: None,
            folder: None,
            files: vec![file],
        };
        Lock { artifacts: vec![artifact] }
    }

    /// What is to be done now.
    pub(crate) fn plan(&self, urls: &[String]) -> (Plan, Lock) {
        let lock = self.lock(urls);
        let wanted: Vec<&Artifact> = lock.artifacts.iter().collect();
        let sightings = observe(&self.stores(), &wanted, &self.facts, true).unwrap();
        let made = plan(&sightings, &Outlook::default());
        (made, lock.clone())
    }

    /// Brings the file from `urls`, until `stop`.
    pub(crate) async fn apply_until(&self, urls: &[String], stop: CancellationToken) -> Outcome {
        let (plan, lock) = self.plan(urls);
        let timeouts = Timeouts { connect: Duration::from_secs(10), stall: Duration::from_secs(10) };
        let sources = Sources::new(&SourceSettings {
            manners: Manners { timeouts, ..Manners::default() },
            ..SourceSettings::default()
        })
        .unwrap();
        let first = Duration::from_millis(1);
        let means = Means {
            stores: Arc::new(self.stores()),
            sources: Arc::new(sources),
            facts: self.facts.clone(),
            monitor: self.heard.clone(),
            ollama_registry: None,
            parallel: 4,
            connections: self.connections,
            first_connections: self.first_connections,
            too_slow: None,
            max_rate: None,
            paces_drives: false,
            retry: RetryPolicy { first, longest: first * 8, ..RetryPolicy::default() },
            stop,
            now: || 1,
        };
        apply::apply(&plan, &lock, means).await
    }

    /// Brings the file from `urls`.
    pub(crate) async fn apply(&self, urls: &[String]) -> Outcome {
        self.apply_until(urls, CancellationToken::new()).await
    }

    /// Fails unless the file is in its place, byte for byte, and nothing unfinished is left.
    #[track_caller]
    pub(crate) fn must_be_right(&self, outcome: &Outcome) {
        assert!(outcome.failures.is_empty() && !outcome.interrupted, "{outcome:?} {:#?}", self.heard(""));
        assert!(fs_err::read(self.place()).unwrap() == *self.content, "the content is wrong");
        assert!(!self.partial().exists() && !self.journal().exists(), "something unfinished is left");
        let chunks = self.facts.chunks(&self.sha256).unwrap().expect("chunk digests are remembered");
        let expected: Vec<_> = self.content.chunks(4 << 20).map(larder::digest::Blake3::of).collect();
        assert_eq!(chunks.digests(), expected);
    }

    /// Removes the file, and all that is known of it but its chunks.
    pub(crate) fn remove(&self) {
        #[expect(clippy::disallowed_methods, reason = "the test's own file")]
        std::fs::remove_file(self.place()).unwrap();
    }
}

/// Bytes without pattern (xorshift): compressible content hides damage.
pub(crate) fn noise(len: usize) -> Arc<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    Arc::new(bytes)
}
