//! Devices in memory that lose their power together: what a crash leaves of each is durable data,
//! and of everything else any sector or none.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::{
    Buf, Device, DeviceLimits, Durability, IoError, IoResult, IoVec, Sector, SectorRange,
};

const SECTOR: usize = 512;

/// Numbers from a seed.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

#[derive(Clone)]
enum Op {
    Write(usize, Vec<u8>, bool),
    Flush,
}

type Log = Rc<RefCell<Vec<(usize, Op)>>>;

/// One of the devices.
pub struct PowerDevice {
    number: usize,
    image: RefCell<Vec<u8>>,
    log: Log,
}

/// All devices, with the log of what was done to them.
pub struct Power<const N: usize = 2> {
    before: [Vec<u8>; N],
    log: Log,
    pub devices: [Rc<PowerDevice>; N],
}

impl<const N: usize> Power<N> {
    pub fn new(images: [Vec<u8>; N]) -> Power<N> {
        let log = Log::default();
        let devices = std::array::from_fn(|number| {
            let image = RefCell::new(images[number].clone());
            Rc::new(PowerDevice { number, image, log: log.clone() })
        });
        Power { devices, log, before: images }
    }

    pub fn images(&self) -> [Vec<u8>; N] {
        self.devices.each_ref().map(|device| device.image.borrow().clone())
    }

    /// Moments at which the power may fail: before each operation, and after the last.
    pub fn moments(&self) -> usize {
        self.log.borrow().len() + 1
    }

    /// Images after the power failed at a moment. `luck`: 0, nothing of what was not durable has
    /// landed; 1, everything; else each sector in any of its versions.
    pub fn cut(&self, moment: usize, luck: u64, numbers: &mut Numbers) -> [Vec<u8>; N] {
        let mut images = self.before.clone();
        let mut open: [BTreeMap<usize, Vec<Vec<u8>>>; N] = std::array::from_fn(|_| BTreeMap::new());
        let log = self.log.borrow();
        for (at, (device, op)) in log.iter().enumerate().take(moment + 1) {
            match op {
                Op::Write(to, bytes, fua) => {
                    for (index, part) in bytes.chunks(SECTOR).enumerate() {
                        let sector = to / SECTOR + index;
                        if *fua && at < moment {
                            open[*device].remove(&sector);
                            land(&mut images[*device], sector, part);
                        } else {
                            open[*device].entry(sector).or_default().push(part.to_vec());
                        }
                    }
                }
                Op::Flush if at < moment => {
                    for (sector, versions) in std::mem::take(&mut open[*device]) {
                        land(&mut images[*device], sector, versions.last().expect("one"));
                    }
                }
                Op::Flush => {}
            }
        }
        for (image, open) in images.iter_mut().zip(&open) {
            for (sector, versions) in open {
                let version = match luck {
                    0 => 0,
                    1 => versions.len(),
                    _ => numbers.below(versions.len() as u64 + 1) as usize,
                };
                if version > 0 {
                    land(image, *sector, &versions[version - 1]);
                }
            }
        }
        images
    }
}

fn land(image: &mut [u8], sector: usize, bytes: &[u8]) {
    image[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
}

impl Device for PowerDevice {
    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            sectors: (self.image.borrow().len() / SECTOR) as u64,
            logical_block_bytes: 512,
            max_transfer_bytes: 1 << 20,
            volatile_cache: true,
            discard: false,
        }
    }

    async fn read(&self, at: Sector, mut into: Buf) -> (Buf, IoResult) {
        let start = at.bytes() as usize;
        match self.image.borrow().get(start..start + into.len()) {
            Some(bytes) => into.as_mut_slice().copy_from_slice(bytes),
            None => return (into, Err(IoError::Os(5))),
        }
        (into, Ok(()))
    }

    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        let (start, bytes) = (at.bytes() as usize, from.to_buf().as_slice().to_vec());
        match self.image.borrow_mut().get_mut(start..start + bytes.len()) {
            Some(place) => place.copy_from_slice(&bytes),
            None => return Err(IoError::Os(5)),
        }
        let op = Op::Write(start, bytes, durability == Durability::Fua);
        self.log.borrow_mut().push((self.number, op));
        Ok(())
    }

    async fn flush(&self) -> IoResult {
        self.log.borrow_mut().push((self.number, Op::Flush));
        Ok(())
    }

    async fn discard(&self, _: SectorRange) -> IoResult {
        Err(IoError::NotSupported)
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.write(range.start, IoVec::zeroes(range.bytes() as usize), Durability::Volatile).await
    }
}
