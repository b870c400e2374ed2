//! Memory of requesters, to which disks read past the program.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use ubcache_env::Place;

use crate::executor::SimEnv;

/// Somebody whose memory has places: one for each of its slots.
pub(crate) trait Requester {
    /// Data for the memory of a slot. Returns false if there is no such memory.
    fn receive(&self, slot: usize, at: usize, bytes: &[u8]) -> bool;
}

/// The places of a world, by number.
#[derive(Default)]
pub(crate) struct Places(RefCell<Vec<(Weak<dyn Requester>, usize)>>);

impl Places {
    /// Gives each of so many slots a place: the first number.
    pub fn take(&self, requester: &Weak<dyn Requester>, slots: usize) -> u32 {
        let mut all = self.0.borrow_mut();
        let first = all.len() as u32;
        all.extend((0..slots).map(|slot| (requester.clone(), slot)));
        first
    }

    /// Data for a place. Returns false if there is no memory at it.
    pub fn receive(&self, place: Place, bytes: &[u8]) -> bool {
        let found = self.0.borrow().get(place.number as usize).cloned();
        let found = found.and_then(|(requester, slot)| Some((requester.upgrade()?, slot)));
        found.is_some_and(|(requester, slot)| requester.receive(slot, place.at as usize, bytes))
    }
}

/// Memory of somebody else with one place.
pub struct ForeignPage(RefCell<Vec<u8>>);

impl ForeignPage {
    /// So many bytes, and their place.
    pub fn new(env: &SimEnv, bytes: usize) -> (Rc<ForeignPage>, Place) {
        let page = Rc::new(ForeignPage(RefCell::new(vec![0; bytes])));
        let requester: Weak<dyn Requester> = Rc::<ForeignPage>::downgrade(&page);
        (page, Place { number: env.places().take(&requester, 1), at: 0 })
    }

    /// Its content at the moment.
    pub fn content(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }
}

impl Requester for ForeignPage {
    fn receive(&self, _: usize, at: usize, bytes: &[u8]) -> bool {
        self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        true
    }
}
