//! Moving the data of a disk in place: the power fails before each write and flush of the disk and
//! of the work file, with torn writes; the same command goes on, is cut off again, and ends with
//! every byte in its place. In between the disk looks whole only where it is.

mod support;

use support::power::{Numbers, Power};
use support::run;
use ubcache_env::Sector;
use ubcache_format::Uuid;
use ubcache_offline::{
    LEAST_SECTORS, MoveError, MovePlan, Resumed, VEIL_MAGIC, begin_move, read_move, resume_move,
    veiled, work_bytes,
};

const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// A move, and the disk before and after it.
struct Case {
    plan: MovePlan,
    superblock: Vec<u8>,
    before: Vec<u8>,
}

impl Case {
    fn new(from: u64, to: u64, sectors: u64, chunk_sectors: u64) -> Case {
        let mut numbers = Numbers::new(from + 31 * to + sectors);
        let total = from.max(to) + sectors;
        let before = (0..total as usize * SECTOR).map(|_| numbers.below(256) as u8).collect();
        let superblock = (0..BLOCK).map(|at| if at < SECTOR { 5 } else { 0 }).collect();
        let (uuid, identity) = (Uuid([7; 16]), "a disk".to_owned());
        let (from, to) = (Sector(from), Sector(to));
        let plan = MovePlan { uuid, from, to, sectors, chunk_sectors, identity };
        Case { plan, superblock, before }
    }

    fn goes_down(&self) -> bool {
        self.plan.to < self.plan.from
    }

    /// The data of a disk at one of the places.
    fn data<'a>(&self, disk: &'a [u8], at: Sector) -> &'a [u8] {
        &disk[at.bytes() as usize..][..self.plan.sectors as usize * SECTOR]
    }

    fn work(&self) -> Vec<u8> {
        vec![0; work_bytes(self.plan.chunk_sectors) as usize]
    }

    /// The command: goes on with what it finds, or begins. False: it was done before.
    fn command(&self, power: &Power) -> bool {
        let [disk, work] = &power.devices;
        let superblock = Some(self.superblock.as_slice()).filter(|_| !self.goes_down());
        let begin = || {
            let looked_at = run(ubcache_env::Device::read(
                &**disk,
                Sector(0),
                ubcache_env::Buf::zeroed(2 * BLOCK),
            ));
            let (looked_at, plan) = (looked_at.0, self.plan.clone());
            run(begin_move(&**disk, &**work, plan, superblock, looked_at.as_slice(), &()))
                .expect("no faults");
        };
        match run(read_move(&**work)).expect("no faults") {
            None => begin(),
            Some(state) => {
                match run(resume_move(&**disk, &**work, state, &())).expect("no faults") {
                    Resumed::Done => {}
                    Resumed::DoneBefore => return false,
                    Resumed::NotBegun => {
                        // An empty work file.
                        let zeroes = vec![0; 8192];
                        let zeroes = ubcache_env::Buf::from_bytes(&zeroes).into();
                        let volatile = ubcache_env::Durability::Volatile;
                        run(ubcache_env::Device::write(&**work, Sector(0), zeroes, volatile))
                            .expect("no faults");
                        run(ubcache_env::Device::flush(&**work)).expect("no faults");
                        begin();
                    }
                }
            }
        }
        true
    }

    /// The way in which a disk looks usable, if it does.
    fn looks(&self, disk: &[u8], data: &[u8]) -> Option<Looks> {
        let sector = |bytes: &[u8], at: usize| bytes[at * SECTOR..(at + 1) * SECTOR].to_vec();
        // A superblock is in force by its first sector, an ext4 by the third one of the disk.
        let mounted = sector(disk, 2) == sector(data, 2);
        if self.goes_down() {
            let served = sector(disk, 8) == sector(&self.before, 8);
            return served.then_some(Looks::Before).or(mounted.then_some(Looks::After));
        }
        let served = sector(disk, 8) == sector(&self.superblock, 0);
        mounted.then_some(Looks::Before).or(served.then_some(Looks::After))
    }

    /// The disk looks usable only where all but sectors of one torn block is whole; then it may be
    /// used before the command runs again.
    fn check_and_use(&self, disk: &mut [u8], data: &mut [u8], numbers: &mut Numbers) {
        let Some(looks) = self.looks(disk, data) else { return };
        let at = match looks {
            Looks::Before => self.plan.from,
            Looks::After => self.plan.to,
        };
        let found = self.data(disk, at);
        for (number, sector) in found.chunks(SECTOR).enumerate() {
            let is_torn = at == Sector(0) && number < 8 && sector.starts_with(&VEIL_MAGIC);
            let expected = &data[number * SECTOR..(number + 1) * SECTOR];
            assert!(is_torn || sector == expected, "it looks whole, and sector {number} is not");
        }
        if numbers.below(2) == 0 {
            return;
        }
        // A mount changes the first block as well.
        for sector in [2, numbers.below(self.plan.sectors) as usize] {
            let value = numbers.below(256) as u8;
            data[sector * SECTOR..(sector + 1) * SECTOR].fill(value);
            let place = at.bytes() as usize + sector * SECTOR;
            disk[place..place + SECTOR].fill(value);
        }
    }

    fn check_end(&self, disk: &[u8], data: &[u8]) {
        assert!(self.data(disk, self.plan.to) == data, "all data is in its new place");
        assert_eq!(veiled(&disk[..8192]), None);
        if !self.goes_down() {
            assert!(disk[..BLOCK].iter().all(|byte| *byte == 0));
            assert!(disk[BLOCK..2 * BLOCK] == self.superblock);
        }
    }

    /// Cuts at every moment of a whole run; at each with several outcomes, and further cuts.
    fn cut_everywhere(&self, seed: u64) -> u64 {
        let data = self.data(&self.before, self.plan.from).to_vec();
        let whole = Power::new([self.before.clone(), self.work()]);
        assert!(self.command(&whole));
        self.check_end(&whole.images()[0], &data);
        let mut numbers = Numbers::new(seed);
        let mut cuts = 0;
        for moment in 0..whole.moments() {
            for luck in 0..4 {
                let mut images = whole.cut(moment, luck, &mut numbers);
                let mut data = data.clone();
                for _ in 0..numbers.below(3) {
                    self.check_and_use(&mut images[0], &mut data, &mut numbers);
                    let power = Power::new(images);
                    self.command(&power);
                    let moment = numbers.below(power.moments() as u64) as usize;
                    images = power.cut(moment, numbers.below(4), &mut numbers);
                    cuts += 1;
                }
                self.check_and_use(&mut images[0], &mut data, &mut numbers);
                let power = Power::new(images);
                self.command(&power);
                self.check_end(&power.images()[0], &data);
                assert!(!self.command(&power), "and it is done");
                cuts += 1;
            }
        }
        cuts
    }
}

#[derive(Copy, Clone, PartialEq, Eq)]
enum Looks {
    Before,
    After,
}

#[test]
fn a_power_cut_at_any_write_of_a_move_loses_nothing() {
    let mut cuts = 0;
    for (seed, (from, to)) in [(16, 0), (0, 16), (40, 0), (700, 0)].into_iter().enumerate() {
        for (sectors, chunk) in [(LEAST_SECTORS, 64), (LEAST_SECTORS + 137, 56), (900, 1000)] {
            cuts += Case::new(from, to, sectors, chunk).cut_everywhere(seed as u64 + 1);
        }
    }
    println!("{cuts} power cuts");
    assert!(cuts > 2_000, "{cuts}");
}

/// A case that is in the middle of its body, as images.
fn halfway(case: &Case) -> [Vec<u8>; 2] {
    let power = Power::new([case.before.clone(), case.work()]);
    case.command(&power);
    let moment = power.moments() / 2;
    power.cut(moment, 0, &mut Numbers::new(1))
}

fn resume(images: [Vec<u8>; 2]) -> Result<Resumed, MoveError> {
    let power = Power::new(images);
    let [disk, work] = &power.devices;
    let state = run(read_move(&**work)).expect("no faults").expect("a record");
    run(resume_move(&**disk, &**work, state, &()))
}

#[test]
fn a_disk_or_a_work_file_that_somebody_changed_is_refused() {
    for (from, to) in [(16, 0), (0, 16)] {
        let case = Case::new(from, to, 1000, 64);
        let mut images = halfway(&case);
        images[0][9 * SECTOR] ^= 1;
        assert_eq!(resume(images), Err(MoveError::Foreign { sector: 9 }));
        let mut images = halfway(&case);
        images[1][8192 + 100] ^= 1;
        assert!(matches!(resume(images), Err(MoveError::WorkDamaged { .. })));
        let mut images = halfway(&case);
        for at in (8192 + (256 << 10)..images[1].len()).step_by(SECTOR) {
            images[1][at] ^= 1;
        }
        assert!(matches!(resume(images), Err(MoveError::WorkDamaged { .. })));
    }
}

/// A case whose data is moved and whose last write is lost: the work file says that only the head
/// is left.
fn before_the_last_write(case: &Case) -> [Vec<u8>; 2] {
    let whole = Power::new([case.before.clone(), case.work()]);
    case.command(&whole);
    let key = if case.goes_down() { 0 } else { 8 };
    for moment in (0..whole.moments()).rev() {
        let images = whole.cut(moment, 0, &mut Numbers::new(1));
        if images[0][key * SECTOR..].starts_with(&VEIL_MAGIC) {
            return images;
        }
    }
    panic!("the veil is drawn");
}

#[test]
fn a_key_block_that_somebody_wrote_is_not_taken_for_the_end_of_a_move() {
    for (from, to, key) in [(16, 0, 0), (0, 16, 8)] {
        let case = Case::new(from, to, 1000, 64);
        let mut images = before_the_last_write(&case);
        // The other block of the veil is still there.
        let other = 8 - key;
        for sector in 0..8 {
            let veil = images[0][(key + sector) * SECTOR..][..SECTOR].to_vec();
            images[0][(other + sector) * SECTOR..][..SECTOR].copy_from_slice(&veil);
            images[0][(other + sector) * SECTOR + 32] = (other + sector) as u8;
            images[0][(key + sector) * SECTOR..][..SECTOR].fill(1);
        }
        assert_eq!(resume(images), Err(MoveError::Foreign { sector: key as u64 }));
    }
}

#[test]
fn a_disk_that_was_changed_since_it_was_looked_at_is_not_moved() {
    for (from, to) in [(16, 0), (0, 16)] {
        let case = Case::new(from, to, 1000, 64);
        let power = Power::new([case.before.clone(), case.work()]);
        let [disk, work] = &power.devices;
        let mut looked_at = case.before[..8192].to_vec();
        looked_at[9 * SECTOR] ^= 1;
        let plan = case.plan.clone();
        let refused = run(begin_move(&**disk, &**work, plan, None, &looked_at, &()));
        assert!(matches!(refused, Err(MoveError::Changed { .. })), "{refused:?}");
        assert!(power.images() == [case.before.clone(), case.work()], "nothing was written");
    }
}

#[test]
fn a_record_that_was_read_before_another_command_went_on_is_not_followed() {
    for (from, to) in [(16, 0), (0, 16)] {
        let case = Case::new(from, to, 1000, 64);
        let images = halfway(&case);
        let power = Power::new(images);
        let [disk, work] = &power.devices;
        let state = run(read_move(&**work)).expect("no faults").expect("a record");
        // Another command, which ends before this one has the disk for itself.
        assert!(case.command(&power));
        let before = power.images();
        let refused = run(resume_move(&**disk, &**work, state, &()));
        assert!(matches!(refused, Err(MoveError::Changed { .. })), "{refused:?}");
        assert!(power.images() == before, "nothing was written");
    }
}
