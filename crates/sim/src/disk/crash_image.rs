//! A disk at the moment of a power failure, before it is settled what survives.
//!
//! [`SimDisk::power_failure`] draws one outcome. A [`CrashImage`] has all of them: every block that
//! is not certain, with the contents that it may have, and makes a disk of any choice. The disk it
//! was taken from goes on as if nothing was.

use std::collections::BTreeMap;

use super::image::{Image, SectorContent};
use super::{DiskConfig, SimDisk};
use crate::executor::SimWorld;
use ubcache_env::Sector;

/// A block that a power failure may leave in more than one way. Its sectors share their fate.
struct Uncertain {
    /// Each sector with its contents, the durable one first, the newest last.
    sectors: Vec<(u64, Vec<SectorContent>)>,
}

/// See the module.
pub struct CrashImage {
    config: DiskConfig,
    image: Image,
    blocks: Vec<Uncertain>,
}

impl SimDisk {
    /// Everything that a power failure at this moment may leave.
    pub fn crash_image(&self) -> CrashImage {
        let state = self.inner.state.borrow();
        let mut contents: BTreeMap<u64, Vec<SectorContent>> = BTreeMap::new();
        for (sector, versions) in state.versions.counts() {
            let all =
                (0..=versions).map(|version| state.versions.content(sector, version)).collect();
            contents.insert(sector, all);
        }
        for io in state.ios.values().filter(|io| io.may_land()) {
            for (sector, content) in io.not_landed() {
                contents
                    .entry(sector)
                    .or_insert_with(|| vec![state.image.content(sector)])
                    .push(content);
            }
        }
        let per_block = self.inner.config.sectors_per_block();
        let mut blocks: BTreeMap<u64, Uncertain> = BTreeMap::new();
        for (sector, all) in contents {
            let block = blocks
                .entry(sector / per_block)
                .or_insert_with(|| Uncertain { sectors: Vec::new() });
            block.sectors.push((sector, all));
        }
        CrashImage {
            config: DiskConfig { sectors: self.inner.sectors.get(), ..self.inner.config.clone() },
            image: state.image.clone(),
            blocks: blocks.into_values().collect(),
        }
    }
}

impl CrashImage {
    /// For each block that is not certain: how many contents it may have. 0 is the durable one, the
    /// last the newest.
    pub fn choices(&self) -> impl Iterator<Item = usize> {
        self.blocks.iter().map(|block| {
            block
                .sectors
                .iter()
                .map(|(_, contents)| contents.len())
                .max()
                .expect("a block has sectors")
        })
    }

    /// The disk of one choice, in another world: `choice` has a number for each block that is not
    /// certain.
    pub fn disk(&self, world: &SimWorld, choice: &[usize]) -> SimDisk {
        assert_eq!(choice.len(), self.blocks.len(), "a choice for every block");
        let disk = SimDisk::new(world, self.config.clone());
        disk.inner.state.borrow_mut().image = self.image.clone();
        let mut bytes = [0; 512];
        for (block, choice) in self.blocks.iter().zip(choice) {
            for (sector, contents) in &block.sectors {
                contents[(*choice).min(contents.len() - 1)].copy_into(&mut bytes);
                disk.poke(Sector(*sector), &bytes);
            }
        }
        disk
    }
}
