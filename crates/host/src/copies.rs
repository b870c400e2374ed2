//! Copying on the reactor's thread, by bytes.
//!
//! A read from the page cache, and a reply to a socket with room, are copied at once: to wait for
//! another thread takes longer. But whoever else has asked for something waits meanwhile. So a turn
//! ends when so much was copied, and of large pieces this thread copies one that is alone; the rest
//! is for threads that do nothing else. A thread that is mostly asleep also gets its processor at
//! once where others compete for it.

use std::cell::Cell;

use crate::op::{PROMPT_BYTES_MAX, SLICE_BYTES};

/// Bytes after which a turn ends: a task that is under way copies the rest of its small pieces.
const TURN_BYTES: usize = 256 << 10;

/// Bytes that were copied on this thread since the latest turn of I/O.
#[derive(Default)]
pub(crate) struct Copies {
    turn: Cell<usize>,
    #[cfg(test)]
    most: Cell<usize>,
}

impl Copies {
    /// Counts bytes that this thread copies.
    pub(crate) fn count(&self, bytes: usize) {
        self.turn.set(self.turn.get() + bytes);
        #[cfg(test)]
        self.most.set(self.most.get().max(self.turn.get()));
    }

    /// Returns true if this thread may copy a piece now, and counts it. `others`: other threads
    /// copy, or wait to copy, large pieces.
    pub(crate) fn may_copy(&self, bytes: usize, others: impl FnOnce() -> bool) -> bool {
        let large = bytes > PROMPT_BYTES_MAX;
        if large && (bytes > SLICE_BYTES || self.turn.get() > 0 || others()) {
            return false;
        }
        self.count(bytes);
        true
    }

    /// Returns true if a turn of I/O is due.
    pub(crate) fn are_enough(&self) -> bool {
        self.turn.get() >= TURN_BYTES
    }

    /// A turn of I/O begins.
    pub(crate) fn begin_turn(&self) {
        self.turn.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use ubcache_env::local::join_all;
    use ubcache_env::{Buf, Device, Env, Priority, Sector};

    use super::*;
    use crate::{Host, HostFile, IoBackend, OpenOptions, PageCache};

    #[test]
    fn large_piece_is_copied_if_it_is_alone() {
        let copies = Copies::default();
        assert!(copies.may_copy(SLICE_BYTES, || false));
        assert!(!copies.may_copy(SLICE_BYTES, || false), "it was the first of two in a turn");
        assert!(copies.may_copy(4096, || true), "small ones always");
        copies.begin_turn();
        assert!(!copies.may_copy(SLICE_BYTES, || true), "others copy");
        assert!(!copies.may_copy(SLICE_BYTES + 512, || false), "longer than a slice");
        assert!(copies.may_copy(SLICE_BYTES, || false));
    }

    /// Regression: a read of 1 MiB in pieces of 64 KiB was copied whole by the reactor's thread,
    /// and so was every other one that was ready in the turn, up to 256 of them. A small request of
    /// another client waited for all of these bytes. Now large pieces go to a thread that copies.
    #[test]
    fn between_two_turns_of_io_little_is_copied_on_the_reactor() {
        const PIECE: usize = 64 << 10;
        const PIECES: usize = 16;
        const CLIENTS: usize = 64;
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let path = directory.path().join("image");
        let content: Vec<u8> = (0..PIECE * PIECES).map(|at| (at / 512 % 251) as u8).collect();
        std::fs::write(&path, &content).expect("a scratch file");
        for backend in [IoBackend::Ring, IoBackend::Pool] {
            let host = match Host::new(backend) {
                Ok(host) => host,
                Err(error) => {
                    println!("SKIPPED: no {backend:?} backend here: {error}");
                    continue;
                }
            };
            let env = host.env();
            let options =
                OpenOptions { page_cache: PageCache::Always, write: false, exclusive: false };
            let file = Rc::new(HostFile::open(&env, &path, options).expect("the file opens"));
            let left = Rc::new(Cell::new(CLIENTS));
            for client in 0..CLIENTS {
                let (file, left, content) = (file.clone(), left.clone(), content.clone());
                // Every other one reads little, and its bytes are right, too.
                let piece = if client % 2 == 0 { PIECE } else { 4096 };
                env.spawn(Priority::Foreground, async move {
                    let read = async |number: usize| {
                        let at = number * piece;
                        let sector = Sector((at / 512) as u64);
                        let (buf, result) = file.read(sector, Buf::zeroed(piece)).await;
                        assert_eq!(result, Ok(()));
                        assert_eq!(buf.as_slice(), &content[at..at + piece]);
                    };
                    join_all((0..PIECES).map(read)).await;
                    left.set(left.get() - 1);
                });
            }
            host.block_on(async {
                while left.get() > 0 {
                    env.yield_now().await;
                }
            });
            let most = env.core().copies().most.get();
            let bound = TURN_BYTES + PIECES * 4096;
            assert!(most <= bound, "{backend:?}: {most} bytes in a turn, more than {bound}");
        }
    }
}
