//! The objects with written data that is not in the store yet, and the memory that they take.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::local::Lock;

use crate::layer::Layer;

/// A layer that readers may hold while it is written or put.
pub type SharedLayer = Rc<RefCell<Layer>>;

/// Written data of one object, in two layers: the lower one is being put, or its PUT has failed.
#[derive(Default)]
pub struct Slot {
    /// Held by the PUT of the object.
    pub turn: Lock,
    upper: RefCell<Option<SharedLayer>>,
    lower: RefCell<Option<SharedLayer>>,
    age: u64,
}

impl Slot {
    /// The layers, upper before lower.
    pub fn layers(&self) -> [Option<SharedLayer>; 2] {
        [self.upper.borrow().clone(), self.lower.borrow().clone()]
    }

    /// Memory that its layers count for.
    pub fn memory_bytes(&self) -> u64 {
        self.layers().iter().flatten().map(|layer| layer.borrow().memory_bytes()).sum()
    }
}

/// All of them.
pub struct Buffers {
    object_bytes: u64,
    slots: BTreeMap<u64, Rc<Slot>>,
    by_age: BTreeMap<u64, u64>,
    next_age: u64,
    memory_bytes: Rc<Cell<u64>>,
}

impl Buffers {
    /// None.
    pub fn new(object_bytes: u64) -> Buffers {
        Buffers {
            object_bytes,
            slots: BTreeMap::new(),
            by_age: BTreeMap::new(),
            next_age: 0,
            memory_bytes: Rc::default(),
        }
    }

    /// Memory that all layers count for.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.get()
    }

    /// The object's data, if it has any that is not in the store.
    pub fn get(&self, index: u64) -> Option<Rc<Slot>> {
        self.slots.get(&index).cloned()
    }

    /// All objects with such data, in order.
    pub fn all(&self) -> Vec<(u64, Rc<Slot>)> {
        self.slots.iter().map(|(index, slot)| (*index, slot.clone())).collect()
    }

    /// The oldest with data, one that is not being put if there is one.
    pub fn oldest(&self) -> Option<(u64, Rc<Slot>)> {
        let mut by_age = self.by_age.values().map(|index| (*index, &self.slots[index]));
        let oldest = by_age.clone().next();
        let idle = by_age.find(|(_, slot)| !slot.turn.is_locked());
        idle.or(oldest).map(|(index, slot)| (index, slot.clone()))
    }

    /// Returns true if a write to the object needs no new memory.
    pub fn has_room(&self, index: u64) -> bool {
        let upper = self.slots.get(&index).and_then(|slot| slot.upper.borrow().clone());
        upper.is_some_and(|layer| layer.borrow().has_memory())
    }

    /// Changes the upper layer of the object. Returns true if all of the object is written then.
    pub fn change(&mut self, index: u64, change: impl FnOnce(&mut Layer)) -> bool {
        let (object_bytes, age) = (self.object_bytes, self.next_age);
        let slot = self.slots.entry(index).or_insert_with(|| {
            self.by_age.insert(age, index);
            self.next_age += 1;
            Rc::new(Slot { age, ..Slot::default() })
        });
        let before = slot.memory_bytes();
        let layer = slot
            .upper
            .borrow_mut()
            .get_or_insert_with(|| Rc::new(RefCell::new(Layer::new(object_bytes))))
            .clone();
        change(&mut layer.borrow_mut());
        let memory_bytes = self.memory_bytes.get() + slot.memory_bytes() - before;
        self.memory_bytes.set(memory_bytes);
        layer.borrow().is_whole()
    }

    /// Makes one layer of the object's two, as the lower one, which a PUT will take. None: it has
    /// no data any more.
    pub fn take_turn(&mut self, slot: &Slot) -> Option<SharedLayer> {
        let before = slot.memory_bytes();
        if let Some(upper) = slot.upper.take() {
            if let Some(lower) = &*slot.lower.borrow() {
                lower.borrow_mut().merge(&upper.borrow());
            }
            slot.lower.borrow_mut().get_or_insert(upper);
        }
        self.recount(before, slot);
        slot.lower.borrow().clone()
    }

    /// Memory of the slot has changed from `before`.
    pub fn recount(&self, before: u64, slot: &Slot) {
        self.memory_bytes.set(self.memory_bytes.get() + slot.memory_bytes() - before);
    }

    /// The lower layer of the object is in the store.
    pub fn put(&mut self, index: u64, slot: &Slot) {
        let before = slot.memory_bytes();
        slot.lower.take();
        self.recount(before, slot);
        if slot.upper.borrow().is_none() {
            self.slots.remove(&index);
            self.by_age.remove(&slot.age);
        }
    }
}
