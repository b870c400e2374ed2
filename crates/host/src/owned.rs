//! A volume of one thread, for lanes on others.
//!
//! Mapping a read, ending it, and asking for the size are calls on the lane's thread, under the
//! lock of the owner: steps of the engine that neither wait nor start anything. Everything else is
//! asked of the owner: a letter is carried out on its thread, as a task of its reactor.

use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use ubcache_env::{
    Env, MappedRead, Owner, Priority, ReadEnd, SectorRange, StreamEnd, StreamId, VolumeInfo,
};
use ubcache_format::Uuid;

use crate::queue::Shared;
use crate::reactor::HostEnv;

/// A volume that its owner shares with lanes.
pub struct OwnedVolume<V: Owner> {
    shared: Arc<Shared>,
    /// Dropped on the owner's thread.
    volume: ManuallyDrop<Here<V>>,
}

/// The volume, and the environment of its thread.
struct Here<V> {
    env: HostEnv,
    volume: Rc<V>,
}

/// A value on its way back to the owner's thread. If it does not arrive, as the owner has ended, it
/// is never dropped.
struct Return<T>(ManuallyDrop<T>);

// SAFETY: `Here` is full of counts and cells without atomics. They are reached on the owner's
// thread, or under its lock while it is kept out (`OwnerLock`), so one thread at a time, each after
// the one before. No reference leaves `&self`: the calls below return plain values, and `V` is the
// engine, which has no state of a thread, and whose calls here start no task and no I/O. They may
// wake tasks of the owner: wakers may be used and dropped on any thread, and reach the owner
// through `Shared::schedule`. The last handle sends `Here` back (`Drop`).
unsafe impl<V: Owner> Send for OwnedVolume<V> {}
// SAFETY: as for `Send`: every access takes the lock, or is on the owner's thread.
unsafe impl<V: Owner> Sync for OwnedVolume<V> {}
// SAFETY: nothing is done with it on the way: see `OwnedVolume::drop`.
unsafe impl<T> Send for Return<T> {}

impl<T> Return<T> {
    fn arrive(self) {
        drop(ManuallyDrop::into_inner(self.0));
    }
}

impl<V: Owner> OwnedVolume<V> {
    /// Shares a volume. From now on the thread of this environment has a lock.
    pub fn new(env: &HostEnv, volume: Rc<V>) -> Arc<OwnedVolume<V>> {
        let shared = env.core().shared().clone();
        shared.lock().begin();
        let volume = ManuallyDrop::new(Here { env: env.clone(), volume });
        Arc::new(OwnedVolume { shared, volume })
    }

    /// Returns true if it is this volume that is shared; on the owner's thread.
    pub fn is(&self, volume: &Rc<V>) -> bool {
        Rc::ptr_eq(&self.volume.volume, volume)
    }

    fn with<R>(&self, act: impl FnOnce(&V) -> R) -> Option<R> {
        if self.shared.is_local() {
            return Some(act(&self.volume.volume));
        }
        self.shared.lock().with(|| act(&self.volume.volume))
    }

    /// Size, blocks and name. `None`: the owner has ended.
    pub fn info(&self) -> Option<VolumeInfo> {
        self.with(V::info)
    }

    /// [`Owner::map_read`], on this thread.
    pub fn map_read(&self, set: Uuid, stream: StreamId, range: SectorRange) -> Option<MappedRead> {
        self.with(|volume| volume.map_read(set, stream, range)).flatten()
    }

    /// [`Owner::end_read`], on this thread.
    pub fn end_read(&self, number: usize, end: ReadEnd) -> bool {
        self.with(|volume| volume.end_read(number, end)).unwrap_or(false)
    }

    /// Tells the owner that a stream has ended.
    pub fn stream_ended(self: &Arc<Self>, stream: StreamId, end: StreamEnd) {
        let me = self.clone();
        // An owner that has ended needs not know.
        let _ = self.shared.post(Box::new(move |_| me.volume.volume.stream_ended(stream, end)));
    }

    /// Has the owner carry something out with the volume, on its thread. `None`: it has ended.
    pub async fn ask<R, F, A>(self: &Arc<Self>, act: A) -> Option<R>
    where
        R: Send + 'static,
        F: Future<Output = R> + 'static,
        A: FnOnce(Rc<V>) -> F + Send + 'static,
    {
        let answer = Arc::new(Answer::default());
        let (me, sender) = (self.clone(), Sender(answer.clone()));
        let letter = move |_: &crate::reactor::Host| {
            let Here { env, volume } = &*me.volume;
            let future = act(volume.clone());
            env.spawn(Priority::Foreground, async move { sender.send(future.await) });
        };
        if !self.shared.post(Box::new(letter)) {
            return None;
        }
        Coming(answer).await
    }
}

impl<V: Owner> Drop for OwnedVolume<V> {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here.
        let here = unsafe { ManuallyDrop::take(&mut self.volume) };
        if self.shared.is_local() {
            return drop(here);
        }
        let back = Return(ManuallyDrop::new(here));
        self.shared.post(Box::new(move |_| back.arrive()));
    }
}

/// The answer to a letter.
struct Answer<R> {
    state: Mutex<State<R>>,
}

enum State<R> {
    Awaited(Option<Waker>),
    Here(R),
    /// It was taken, or will never come.
    Gone,
}

impl<R> Default for Answer<R> {
    fn default() -> Answer<R> {
        Answer { state: Mutex::new(State::Awaited(None)) }
    }
}

impl<R> Answer<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, next: State<R>) {
        let before = std::mem::replace(&mut *self.state(), next);
        if let State::Awaited(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// The end of an answer that is with the owner. Dropped, no answer comes.
struct Sender<R>(Arc<Answer<R>>);

impl<R> Sender<R> {
    fn send(self, value: R) {
        self.0.set(State::Here(value));
    }
}

impl<R> Drop for Sender<R> {
    fn drop(&mut self) {
        if matches!(*self.0.state(), State::Awaited(_)) {
            self.0.set(State::Gone);
        }
    }
}

/// The end of an answer that is with the lane.
struct Coming<R>(Arc<Answer<R>>);

impl<R> Future for Coming<R> {
    type Output = Option<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<R>> {
        let mut state = self.0.state();
        if let State::Awaited(waker) = &mut *state {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, State::Gone) {
            State::Here(value) => Poll::Ready(Some(value)),
            _ => Poll::Ready(None),
        }
    }
}
