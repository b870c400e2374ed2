//! Blocks of a volume that one client writes, reads and compares: the content that each of them may
//! have, after requests that failed and after a crash.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ubcache_cli::nbd_client::Client;

use super::pseudo_random;

pub const BLOCK: usize = 4096;

/// Content of a block: a number for each write to it, 0 for what was there before.
#[derive(Copy, Clone, Default)]
struct Versions {
    /// The oldest that a crash may leave.
    durable: u64,
    /// Bounds of what a read may find.
    oldest: u64,
    newest: u64,
    /// The newest that was ever sent.
    sent: u64,
}

/// Blocks that lie one after the other.
pub struct Blocks {
    start: u64,
    blocks: Vec<Versions>,
    /// They had data before the first write; otherwise zeroes.
    had_data: bool,
    random: u64,
}

impl Blocks {
    /// Blocks of zeroes from a byte of the volume on.
    pub fn of_zeroes(start: u64, count: usize) -> Blocks {
        Blocks {
            start,
            blocks: vec![Versions::default(); count],
            had_data: false,
            random: start + 1,
        }
    }

    /// Blocks with data, which this puts on a disk whose volume begins at byte `data_at`.
    pub fn on_disk(disk: &File, data_at: u64, start: u64, count: usize) -> Blocks {
        let blocks = Blocks { had_data: true, ..Blocks::of_zeroes(start, count) };
        for index in 0..count {
            let at = data_at + blocks.at(index);
            disk.write_all_at(&blocks.content(index, 0), at).expect("a write to the disk");
        }
        blocks
    }

    fn at(&self, index: usize) -> u64 {
        self.start + (index * BLOCK) as u64
    }

    fn content(&self, index: usize, version: u64) -> Vec<u8> {
        let mut content = vec![0; BLOCK];
        if version > 0 || self.had_data {
            pseudo_random(self.at(index) ^ version << 40, &mut content);
        }
        content
    }

    fn random(&mut self, below: usize) -> usize {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.random >> 33) as usize % below
    }

    /// A read, a write or a flush, by chance.
    ///
    /// # Errors
    /// Those of the request.
    pub fn request(&mut self, client: &mut Client) -> io::Result<()> {
        let index = self.random(self.blocks.len());
        match self.random(16) {
            0 => self.flush(client),
            1..=6 => self.read(client, index),
            _ => self.write(client, index),
        }
    }

    fn write(&mut self, client: &mut Client, index: usize) -> io::Result<()> {
        let version = self.blocks[index].sent + 1;
        let (at, content) = (self.at(index), self.content(index, version));
        let block = &mut self.blocks[index];
        (block.sent, block.newest) = (version, version);
        client.write(at, &content, false)?;
        block.oldest = version;
        Ok(())
    }

    fn read(&mut self, client: &mut Client, index: usize) -> io::Result<()> {
        let mut found = vec![0; BLOCK];
        client.read(self.at(index), &mut found)?;
        let Versions { oldest, newest, .. } = self.blocks[index];
        let version = (oldest..=newest).rev().find(|it| self.content(index, *it) == found);
        let Some(version) = version else {
            panic!("byte {} has none of the contents {oldest} to {newest}", self.at(index))
        };
        // Nobody writes meanwhile: from now on it is this one.
        let block = &mut self.blocks[index];
        (block.oldest, block.newest) = (version, version);
        Ok(())
    }

    fn flush(&mut self, client: &mut Client) -> io::Result<()> {
        client.flush()?;
        for block in &mut self.blocks {
            block.durable = block.oldest;
        }
        Ok(())
    }

    /// The daemon has died: what was not flushed may be gone, and what failed may be there.
    pub fn crashed(&mut self) {
        for block in &mut self.blocks {
            (block.oldest, block.newest) = (block.durable, block.sent);
        }
    }

    /// Reads every block, which has one content from then on.
    pub fn settle(&mut self, client: &mut Client) {
        for index in 0..self.blocks.len() {
            self.read(client, index).expect("a read");
        }
        self.flush(client).expect("a flush");
    }

    /// Compares every block with what `read` finds at its byte of the volume.
    pub fn compare(&self, read: impl Fn(u64, &mut [u8])) {
        let mut found = vec![0; BLOCK];
        for (index, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.oldest, block.newest, "it was settled");
            read(self.at(index), &mut found);
            assert!(found == self.content(index, block.newest), "byte {}", self.at(index));
        }
    }

    /// Compares every block with a disk whose volume begins at byte `data_at`.
    pub fn compare_disk(&self, disk: &File, data_at: u64) {
        self.compare(|at, found| disk.read_exact_at(found, data_at + at).expect("a read"));
    }
}
