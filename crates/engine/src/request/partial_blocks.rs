//! Writes of parts of blocks (T5), and the turns of writes beside them.

use ubcache_env::bytes::ByteRange;
use ubcache_env::{Env, IoError, IoVec, SectorRange, StreamId, VolumeError};
use ubcache_format::SECTOR_BYTES;

use super::write::Payload;
use crate::rules::Rule;
use crate::volume::CachedVolume;
use crate::write_turns::{Edges, Turn};

impl<E: Env> CachedVolume<E> {
    /// A turn over whole blocks, if somebody writes a part of a block at the time. To be asked for
    /// in the step in which the write enters the table.
    pub(crate) async fn turn(&self, range: SectorRange) -> Option<Turn> {
        if !self.coherence.turns.are_taken() {
            return None;
        }
        let turn = self.coherence.turns.take(self.volume_range(range), Edges::new());
        if turn.comes().await {
            self.context.env.mark("write_waits_for_a_part");
        }
        Some(turn)
    }

    /// T5: reads the blocks of which `data` has a part only, and writes them as a whole. From the
    /// read to the reply no other write is over them.
    pub(crate) async fn write_part(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let started = self.context.env.now();
        let bytes = ByteRange::new(offset, data.len() as u64, self.block_sectors() * SECTOR_BYTES);
        let around = bytes.around();
        let keys = self.key_range(around)?;
        self.context.env.mark("part_of_a_block_written");
        let exclusive = self.context.keeps(Rule::T5PartExcludesWrites);
        let turn = exclusive.then(|| self.coherence.turns.take(around, bytes.edges().collect()));
        if let Some(turn) = &turn {
            let mut waited = turn.comes().await;
            for edge in bytes.edges() {
                // Writes that were there before.
                let edge = self.key_range(edge)?;
                waited |= self.coherence.inflight.writes_leave(edge).await;
            }
            if waited {
                self.context.env.mark("part_waits_for_a_write");
            }
        }
        let Some(mut whole) = self.context.env.buffers().for_bytes(around.bytes() as usize) else {
            self.context.env.mark("no_memory_for_client");
            return Err(VolumeError::Io(IoError::NoMemory));
        };
        for edge in bytes.edges() {
            let old = self.read_edge(self.key_range(edge)?).await?;
            let at = (edge.start.bytes() - around.start.bytes()) as usize;
            old.copy_to(&mut whole.as_mut_slice()[at..at + old.len()]);
        }
        let at = (offset - around.start.bytes()) as usize;
        data.copy_to(&mut whole.as_mut_slice()[at..at + data.len()]);
        // Its memory is the client's no more.
        drop(data);
        self.write_rare((stream, started), keys, Payload::Data(whole.into()), fua).await
    }

    /// Reads what a write is about to replace: it goes past the cache, if it is not there.
    async fn read_edge(&self, edge: SectorRange) -> Result<IoVec, VolumeError> {
        if self.lifecycle.uses_cache() {
            self.look_up_and_read(edge, true, None).await.1
        } else {
            self.read_backing(edge).await.map(IoVec::from)
        }
    }
}
