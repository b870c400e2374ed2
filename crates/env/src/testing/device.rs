//! A script of the duties of every [`Device`], which runs in any world.
//!
//! The script knows the content of the device at every moment (a plain byte vector) and compares
//! after every step. It panics at the first difference.

use std::rc::Rc;

use ubcache_format::{SECTOR_BYTES, Sector, SectorRange};

use crate::buf::{Buf, IoVec};
use crate::device::{Device, DeviceLimits, Durability, IoError};
use crate::local::{first, join_all};
use crate::world::{Env, Priority};

/// The smallest device that the script can run on.
pub const DEVICE_BYTES_MIN: u64 = 16 << 20;

const MIB: usize = 1 << 20;

/// The device and what must be on it.
struct Script<E, D> {
    env: E,
    device: Rc<D>,
    limits: DeviceLimits,
    content: Vec<u8>,
    serial: u64,
}

/// Runs all steps. Destroys the content of the device.
pub async fn device_conformance<E: Env, D: Device>(env: &E, device: Rc<D>) {
    let limits = device.limits();
    assert!(limits.sectors * SECTOR_BYTES >= DEVICE_BYTES_MIN, "the script needs a larger device");
    assert!(limits.logical_block_bytes.is_power_of_two() && limits.logical_block_bytes >= 512);
    let content = vec![0; DEVICE_BYTES_MIN as usize];
    let mut script = Script { env: env.clone(), device, limits, content, serial: 0 };
    script.starts_from_zeroes().await;
    script.all_sizes().await;
    script.odd_reads().await;
    script.scatter_writes().await;
    script.out_of_range().await;
    script.durability().await;
    script.zeroes_and_discards().await;
    script.dropped_reads().await;
    script.crowd().await;
}

impl<E: Env, D: Device> Script<E, D> {
    fn block(&self) -> usize {
        self.limits.logical_block_bytes as usize
    }

    /// Bytes that no other call gives.
    fn fresh(&mut self, len: usize) -> Buf {
        self.serial += 1;
        let mut buf = Buf::zeroed(len);
        let mut state = self.serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for chunk in buf.as_mut_slice().chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        buf
    }

    async fn write(&mut self, at: usize, data: IoVec, durability: Durability) {
        data.copy_to(&mut self.content[at..at + data.len()]);
        let len = data.len();
        let result = self.device.write(sector(at), data, durability).await;
        assert_eq!(result, Ok(()), "write of {len} bytes at {at}");
    }

    async fn verify(&self, at: usize, len: usize) {
        let (buf, result) = self.device.read(sector(at), Buf::zeroed(len)).await;
        assert_eq!(result, Ok(()), "read of {len} bytes at {at}");
        assert_eq!(buf.len(), len, "the buffer comes back as it was");
        let expected = &self.content[at..at + len];
        if let Some(offset) =
            buf.as_slice().iter().zip(expected).position(|(found, wanted)| found != wanted)
        {
            panic!("byte {} of a read of {len} bytes at {at} is wrong", at + offset);
        }
    }

    async fn verify_all(&self) {
        for at in (0..self.content.len()).step_by(MIB) {
            self.verify(at, MIB).await;
        }
    }

    async fn starts_from_zeroes(&mut self) {
        for at in (0..self.content.len()).step_by(MIB) {
            self.write(at, IoVec::zeroes(MIB), Durability::Volatile).await;
        }
        self.verify_all().await;
    }

    async fn all_sizes(&mut self) {
        let mut len = self.block();
        while len <= 4 * MIB {
            for at in [0, self.block(), 3 * MIB + 5 * self.block(), self.content.len() - len] {
                let data = self.fresh(len);
                self.write(at, data.into(), Durability::Volatile).await;
                self.verify(at, len).await;
            }
            len *= 2;
        }
        for blocks in [3, 7, 129, 1025] {
            let len = blocks * self.block();
            let data = self.fresh(len);
            self.write(MIB + self.block(), data.into(), Durability::Volatile).await;
        }
        self.verify_all().await;
    }

    /// Reads of single sectors work whatever the logical block is; writes of less than a logical
    /// block are refused.
    async fn odd_reads(&mut self) {
        for at in (0..20_000).step_by(512) {
            self.verify(at, 512).await;
            self.verify(at, 1536).await;
        }
        self.verify(self.content.len() - 512, 512).await;
        self.verify(0, 0).await;
        assert_eq!(self.device.write(Sector(0), IoVec::new(), Durability::Fua).await, Ok(()));
        let (buf, result) = self.device.read(Sector(0), Buf::zeroed(100)).await;
        assert!(result.is_err() && buf.len() == 100, "a part of a sector can't be read");
        let part: IoVec = Buf::zeroed(700).into();
        assert!(self.device.write(Sector(0), part, Durability::Volatile).await.is_err());
        if self.block() > 512 {
            let sector: IoVec = Buf::zeroed(512).into();
            assert!(self.device.write(Sector(1), sector, Durability::Volatile).await.is_err());
        }
        self.verify_all().await;
    }

    async fn scatter_writes(&mut self) {
        // Slices cut at every 512 bytes, then at odd bytes, then very many of them.
        let source = self.fresh(MIB).freeze();
        let mut cut = IoVec::new();
        for index in 0..64 {
            cut.push(source.cut(index * 9216 + 512, index * 9216 + 512 + 4096));
        }
        self.write(2 * MIB, cut, Durability::Volatile).await;
        let mut odd = IoVec::new();
        odd.push(source.cut(1, 100));
        odd.push(source.cut(333, 8192 + 333 - 99));
        self.write(4 * MIB, odd, Durability::Volatile).await;
        let unaligned = source.cut(7, 7 + 65_536);
        self.write(5 * MIB, unaligned.into(), Durability::Fua).await;
        let mut many = IoVec::new();
        for index in (0..2 * 1500).rev() {
            let from = (index * 512) % MIB;
            many.push(source.cut(from, from + 512));
        }
        let whole_blocks = many.len() / self.block() * self.block();
        self.write(6 * MIB, many.cut(0, whole_blocks), Durability::Volatile).await;
        self.verify_all().await;
    }

    async fn out_of_range(&mut self) {
        let sectors = self.limits.sectors;
        let block = self.block() as u64 / SECTOR_BYTES;
        for at in [sectors, sectors - block, sectors + 1000 * block, u64::MAX - 5] {
            let len = 2 * self.block();
            let range = SectorRange::new(Sector(at), 2 * block);
            let outside = |result: &Result<(), IoError>| {
                matches!(result,
                Err(IoError::OutOfRange { sectors: size, .. }) if *size == sectors)
            };
            let (buf, result) = self.device.read(Sector(at), Buf::zeroed(len)).await;
            assert!(outside(&result) && buf.len() == len, "read {range}: {result:?}");
            let result =
                self.device.write(Sector(at), Buf::zeroed(len).into(), Durability::Volatile).await;
            assert!(outside(&result), "write {range}: {result:?}");
            let result = self.device.write_zeroes(range).await;
            assert!(outside(&result), "write zeroes {range}: {result:?}");
            let result = self.device.discard(range).await;
            assert!(outside(&result), "discard {range}: {result:?}");
        }
        self.verify_all().await;
    }

    async fn durability(&mut self) {
        for blocks in [1, 2, 64] {
            let data = self.fresh(blocks * self.block());
            self.write(8 * MIB, data.into(), Durability::Fua).await;
            self.verify(8 * MIB, blocks * self.block()).await;
        }
        assert_eq!(self.device.flush().await, Ok(()));
        let flushes = (0..10).map(|_| self.device.flush());
        assert!(join_all(flushes).await.iter().all(Result::is_ok));
    }

    async fn zeroes_and_discards(&mut self) {
        let block = self.block();
        for (at, blocks) in [(MIB, 1), (MIB + 3 * block, 5), (2 * MIB + block, 700)] {
            let range = SectorRange::new(sector(at), (blocks * block) as u64 / SECTOR_BYTES);
            assert_eq!(self.device.write_zeroes(range).await, Ok(()), "write zeroes {range}");
            self.content[at..at + blocks * block].fill(0);
            self.verify(at - block, (blocks + 2) * block).await;
        }
        let whole = SectorRange::new(sector(9 * MIB), MIB as u64 / SECTOR_BYTES);
        let result = self.device.discard(whole).await;
        if self.device.limits().discard {
            assert_eq!(result, Ok(()), "discard {whole}");
        } else {
            assert_eq!(result, Err(IoError::NotSupported));
        }
        // A discarded range may read as anything: define it again.
        let data = self.fresh(MIB);
        self.write(9 * MIB, data.into(), Durability::Volatile).await;
        self.verify_all().await;
    }

    /// Futures of reads and writes are dropped at any moment, their memory is reused at once, and
    /// the content of the device stays right.
    async fn dropped_reads(&mut self) {
        for round in 0..200_usize {
            let len = 64 << 10;
            {
                let read = self.device.read(sector(10 * MIB), Buf::zeroed(len));
                first(read, async {
                    for _ in 0..round % 3 {
                        self.env.yield_now().await;
                    }
                })
                .await;
            }
            let mut reused = Buf::zeroed(len);
            reused.as_mut_slice().fill(0xa5);
            self.env.yield_now().await;
            self.verify(3 * MIB, len).await;
            assert!(
                reused.as_slice().iter().all(|byte| *byte == 0xa5),
                "a dropped read wrote to freed memory"
            );
        }
        let data: IoVec = self.fresh(64 << 10).into();
        {
            let write = self.device.write(sector(11 * MIB), data.clone(), Durability::Volatile);
            first(write, self.env.yield_now()).await;
        }
        // The write may or may not have taken effect, and may still do so: write the same again.
        self.write(11 * MIB, data, Durability::Volatile).await;
        self.verify_all().await;
    }

    /// Ten thousand operations at the same time.
    async fn crowd(&mut self) {
        let block = self.block();
        let data = self.fresh(2 * MIB).freeze();
        let blocks = 2 * MIB / block;
        let mut tasks = Vec::new();
        for index in 0..10_000 {
            let offset = index % blocks * block;
            let (device, piece) = (self.device.clone(), data.cut(offset, offset + block));
            let priority =
                [Priority::Foreground, Priority::Journal, Priority::Background, Priority::Fill]
                    [index % 4];
            tasks.push(self.env.spawn(priority, async move {
                let result = if index < 5_000 {
                    device
                        .write(sector(12 * MIB + offset), piece.into(), Durability::Volatile)
                        .await
                } else {
                    device.read(sector(offset), Buf::zeroed(piece.len())).await.1
                };
                assert_eq!(result, Ok(()));
            }));
        }
        for task in tasks {
            task.join().await;
        }
        let written = (5_000 * block).min(2 * MIB);
        self.content[12 * MIB..12 * MIB + written].copy_from_slice(&data.as_slice()[..written]);
        self.verify_all().await;
    }
}

fn sector(bytes: usize) -> Sector {
    Sector(bytes as u64 / SECTOR_BYTES)
}
