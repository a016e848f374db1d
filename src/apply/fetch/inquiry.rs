//! What follows when all bytes of a large file came and are not the file: who is to blame, and what comes again.

use std::sync::Arc;

use futures_util::future::join_all;

use super::doubt::{Doubt, Doubts, Senders};
use super::suppliers::Suppliers;
use crate::apply::bring::{Target, blocking};
use crate::apply::{JobError, Run};
use crate::artifact::Reference;
use crate::digest::{ChunkDigests, chunk_range};
use crate::fsio::{Assembly, Earlier, ProofError};
use crate::monitor::Event;

/// What is known of the senders of one file.
pub(super) struct Inquiry {
    assembly: Arc<Assembly>,
    pub(super) senders: Arc<Senders>,
    /// `None` until there was a reason to doubt, for which peers are asked.
    doubts: Option<Doubts>,
}

impl Inquiry {
    pub(super) fn into(assembly: &Arc<Assembly>) -> Self {
        Self {
            assembly: assembly.clone(),
            senders: Arc::new(Senders::of(assembly.chunk_digests().len())),
            doubts: None,
        }
    }
}

impl Run {
    /// Decides what of a content that proved wrong comes again, and from whom; returns what of it stays.
    pub(super) async fn after_wrong(
        &self,
        target: &Target,
        suppliers: &mut Suppliers,
        inquiry: &mut Inquiry,
        error: ProofError,
    ) -> Result<Earlier, JobError> {
        let assembly = &inquiry.assembly.clone();
        // A mixture of runs and sources proves nothing about any of them; a whole file from one does.
        let culprit = inquiry.senders.only_one();
        let has_another_way = culprit.is_some_and(|culprit| self.distrusts(&suppliers.get(culprit).remote));
        if !has_another_way && let Some(doubt) = self.doubt(target, assembly, suppliers, inquiry).await? {
            return self.take_back(target, assembly, suppliers, doubt).await;
        }
        self.begin_again(target, assembly, &error).await?;
        inquiry.senders.begin_again();
        match culprit {
            Some(_) if has_another_way => {}
            Some(culprit) => self.blame(target, suppliers, culprit, error),
            None => suppliers.ask_one_alone(),
        }
        Ok(Earlier { parts: Vec::new() })
    }

    fn blame(&self, target: &Target, suppliers: &mut Suppliers, culprit: usize, error: ProofError) {
        let reference = suppliers.get(culprit).remote.reference.clone();
        let wrong = JobError::Wrong { from: reference.to_string(), source: error };
        self.distrust(&reference);
        if suppliers.has_other_than(culprit) {
            self.left_out(&target.item, &reference, &wrong.chain());
        }
        suppliers.get_mut(culprit).leave_out(wrong);
    }

    async fn doubt(
        &self,
        target: &Target,
        assembly: &Assembly,
        suppliers: &Suppliers,
        inquiry: &mut Inquiry,
    ) -> Result<Option<Doubt>, JobError> {
        let doubts = match &mut inquiry.doubts {
            Some(doubts) => doubts,
            none => none.insert(Doubts::with(self.chunk_lists(target, assembly.size(), suppliers).await?)),
        };
        Ok(doubts.next(&assembly.chunk_digests(), &inquiry.senders.by_chunk(), suppliers.crowd()))
    }

    /// What all peers say of the chunks. They say it from memory, so that a peer whose disk rots knows what was right.
    async fn chunk_lists(
        &self,
        target: &Target,
        size: u64,
        suppliers: &Suppliers,
    ) -> Result<Vec<ChunkDigests>, JobError> {
        let Some(sha256) = target.wanted().digests.sha256 else { return Ok(Vec::new()) };
        let mut names: Vec<String> = Vec::new();
        for reference in suppliers.each(|supplier| supplier.remote.reference.clone()) {
            if let Reference::Peer { peer, .. } = reference
                && !names.contains(&peer)
            {
                names.push(peer);
            }
        }
        let peers = self.means.sources.peers();
        let asked = join_all(names.iter().map(|name| peers.chunks(name, &sha256)));
        let said = tokio::select! {
            said = asked => said,
            () = self.means.stop.cancelled() => return Err(JobError::Interrupted),
        };
        Ok(said.into_iter().flatten().filter(|list| list.content_len() == size).collect())
    }

    async fn take_back(
        &self,
        target: &Target,
        assembly: &Arc<Assembly>,
        suppliers: &mut Suppliers,
        doubt: Doubt,
    ) -> Result<Earlier, JobError> {
        let len = |chunk: &u64| {
            let range = chunk_range(*chunk, assembly.size());
            range.end - range.start
        };
        let bytes = doubt.chunks.iter().map(len).sum();
        self.means.monitor.event(Event::Lost { item: &target.item, bytes });
        suppliers.suspect(doubt.suspect);
        let assembly = assembly.clone();
        blocking(move || {
            assembly.forget(&doubt.chunks).map_err(JobError::io("Its unfinished content cannot be taken back"))?;
            Ok(assembly.earlier())
        })
        .await
    }

    /// The whole is right: now it is known who was not.
    pub(super) fn name_liars(&self, target: &Target, assembly: &Assembly, suppliers: &Suppliers, inquiry: &Inquiry) {
        let Some(doubts) = &inquiry.doubts else { return };
        for liar in doubts.liars(&assembly.chunk_digests()) {
            let reference = &suppliers.get(liar.supplier).remote.reference;
            let wrong = JobError::Wrong { from: reference.to_string(), source: ProofError::Content(liar.mismatch) };
            self.distrust(reference);
            self.left_out(&target.item, reference, &wrong.chain());
        }
    }

    async fn begin_again(&self, target: &Target, assembly: &Arc<Assembly>, error: &ProofError) -> Result<(), JobError> {
        let reason = error.to_string();
        self.means.monitor.event(Event::Restarted { item: &target.item, reason: &reason });
        let assembly = assembly.clone();
        blocking(move || assembly.restart().map_err(JobError::io("Its unfinished content cannot be emptied"))).await
    }
}
