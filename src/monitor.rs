//! How the library tells what it is doing, without knowing who listens.

/// Something that happened during a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A phase of the run begins, such as `checking sources`.
    Phase(&'a str),
    /// Work on one item begins. `resumed` of its bytes are already here.
    Started {
        /// Names the item in later events: artifact and path.
        item: &'a str,
        /// Bytes in all, where known.
        total: Option<u64>,
        /// Bytes that need not be moved again.
        resumed: u64,
        /// Where the bytes come from.
        from: &'a str,
    },
    /// `bytes` more of the item are on the disk.
    Advanced {
        /// The item.
        item: &'a str,
        /// New bytes.
        bytes: u64,
    },
    /// `bytes` of the item that were here are not right, and come again.
    Lost {
        /// The item.
        item: &'a str,
        /// Their number.
        bytes: u64,
    },
    /// A large item has another number of connections now.
    Connections {
        /// The item.
        item: &'a str,
        /// The new number.
        count: usize,
    },
    /// A source of the item is not asked any more; others go on.
    LeftOut {
        /// The item.
        item: &'a str,
        /// The source.
        from: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// The item starts again from its first byte, because what was there proved wrong.
    Restarted {
        /// The item.
        item: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// A passing error; the item is tried again after a pause.
    Retrying {
        /// The item.
        item: &'a str,
        /// What happened.
        reason: &'a str,
        /// Milliseconds until the next try.
        pause_ms: u64,
    },
    /// The item waits for another program that works on the same content.
    Waiting {
        /// The item.
        item: &'a str,
    },
    /// The item's first `bytes` bytes are on the disk and hashed: there is no second pass over them.
    Proven {
        /// The item.
        item: &'a str,
        /// Bytes from the beginning.
        bytes: u64,
    },
    /// Something is computed with the item: so many steps of a stage are done.
    Stage {
        /// The item.
        item: &'a str,
        /// The stage, and the block it is at where that is known.
        stage: &'a str,
        /// Steps that are done.
        done: u64,
        /// Steps of the stage.
        of: u64,
    },
    /// The item is finished and proven.
    Finished {
        /// The item.
        item: &'a str,
    },
    /// The item failed; the run goes on with the others.
    Failed {
        /// The item.
        item: &'a str,
        /// Why, and what to do about it.
        reason: &'a str,
    },
}

/// Listens to a run. Called from many threads; must return quickly.
pub trait Monitor: Send + Sync {
    /// Takes note of one event.
    fn event(&self, event: Event<'_>);
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn event(&self, _: Event<'_>) {}
}
