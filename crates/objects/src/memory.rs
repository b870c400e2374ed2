//! A store in memory that fails like a real one, for tests.
//!
//! Every request takes virtual time. Faults are drawn from the world's random numbers: an answer of
//! "busy", an answer that is lost after the request was carried out, and a request that is carried
//! out long after its client gave it up, also after the client's end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use ubcache_env::local::Event;
use ubcache_env::{Env, Nanos, Priority};

use crate::store::{Condition, Object, Store, StoreError};

/// Keys of one answer to a listing.
const LIST_MAX: usize = 7;

/// Faults of a store, in thousandths of its requests.
#[derive(Copy, Clone, Debug, Default)]
pub struct Faults {
    /// Answers of "busy": nothing was done.
    pub busy: u64,
    /// Answers that are lost: the request was carried out.
    pub lost: u64,
    /// Answers that are lost: the request will be carried out within this time.
    pub late: u64,
    /// The longest time for that.
    pub late_within: Nanos,
}

/// Treatment of conditions by a store.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Conditions {
    /// Checks them.
    #[default]
    Checked,
    /// Ignores all.
    Ignored,
    /// Ignores `If-Match` only.
    MatchIgnored,
}

#[derive(Default)]
struct Contents {
    objects: BTreeMap<String, Object>,
}

/// Tags are of the content, as most stores have them: the same content has the same tag again.
fn tag(bytes: &[u8]) -> String {
    let mut tag = 0xcbf2_9ce4_8422_2325_u64;
    for word in bytes.chunks(8) {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        tag = (tag ^ u64::from_le_bytes(padded)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
    format!("\"{tag:016x}\"")
}

/// The store; handles share it.
pub struct MemoryStore<E> {
    /// The store's own world: it outlives its clients.
    env: E,
    contents: RefCell<Contents>,
    /// Faults from now on.
    pub faults: Cell<Faults>,
    /// True while nothing is answered.
    pub away: Cell<bool>,
    /// See [`Conditions`].
    pub conditions: Cell<Conditions>,
}

impl<E: Env> MemoryStore<E> {
    /// An empty store without faults.
    pub fn new(env: E) -> Rc<MemoryStore<E>> {
        let (faults, away, conditions) = (Cell::default(), Cell::default(), Cell::default());
        Rc::new(MemoryStore { env, contents: RefCell::default(), faults, away, conditions })
    }

    /// A client of the store.
    pub fn client(self: &Rc<Self>) -> Client<E> {
        let (requests, end, ended) = (Cell::new(0), Cell::new(None), Event::default());
        Client(Rc::new(ClientState { store: self.clone(), requests, end, ended }))
    }

    /// All keys.
    pub fn keys(&self) -> Vec<String> {
        self.contents.borrow().objects.keys().cloned().collect()
    }

    /// Content of an object.
    pub fn content(&self, key: &str) -> Option<Bytes> {
        self.contents.borrow().objects.get(key).map(|object| object.bytes.clone())
    }

    /// Replaces the content of an object, past all conditions.
    pub fn tamper(&self, key: &str, bytes: Bytes) {
        let _ = self.carry_out(&Request::Put(key.to_owned(), bytes, Condition::None));
    }

    fn carry_out(&self, request: &Request) -> Result<Answer, StoreError> {
        let mut contents = self.contents.borrow_mut();
        let absent = |key: &String| StoreError::NotFound(key.clone());
        match request {
            Request::Get(key, range) => {
                let Object { bytes, etag } =
                    contents.objects.get(key).cloned().ok_or_else(|| absent(key))?;
                let len = bytes.len() as u64;
                let range = range.clone().unwrap_or(0..len);
                let bytes = bytes.slice(range.start.min(len) as usize..range.end.min(len) as usize);
                Ok(Answer::Object(Object { bytes, etag }))
            }
            Request::Put(key, bytes, condition) => {
                let found = contents.objects.get(key).map(|object| &object.etag);
                let met = match (condition, self.conditions.get()) {
                    (Condition::None, _) | (_, Conditions::Ignored) => true,
                    (Condition::Absent, _) => found.is_none(),
                    (Condition::Matches(_), Conditions::MatchIgnored) => true,
                    (Condition::Matches(etag), _) => found == Some(etag),
                };
                if !met {
                    return Err(StoreError::Conflict);
                }
                let object = Object { bytes: bytes.clone(), etag: tag(bytes) };
                let etag = object.etag.clone();
                contents.objects.insert(key.clone(), object);
                Ok(Answer::Tag(etag))
            }
            Request::Delete(key) => {
                contents.objects.remove(key);
                Ok(Answer::Deleted)
            }
            Request::List(prefix, after) => {
                let keys = contents.objects.keys();
                let keys = keys.filter(|key| key.starts_with(prefix) && *key > after);
                Ok(Answer::Keys(keys.take(LIST_MAX).cloned().collect()))
            }
        }
    }
}

enum Request {
    Get(String, Option<Range<u64>>),
    Put(String, Bytes, Condition),
    Delete(String),
    List(String, String),
}

enum Answer {
    Object(Object),
    Tag(String),
    Deleted,
    Keys(Vec<String>),
}

/// The moment at which a client ends: as if its machine lost its power.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct End {
    /// Number of the request, counted from 1.
    pub request: u64,
    /// True: the request is carried out all the same.
    pub carried_out: bool,
}

struct ClientState<E> {
    store: Rc<MemoryStore<E>>,
    requests: Cell<u64>,
    end: Cell<Option<End>>,
    ended: Event,
}

/// A client of a [`MemoryStore`].
pub struct Client<E>(Rc<ClientState<E>>);

impl<E> Clone for Client<E> {
    fn clone(&self) -> Self {
        Client(self.0.clone())
    }
}

impl<E: Env> Client<E> {
    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.0.requests.get()
    }

    /// Sets the client's end.
    pub fn end_at(&self, end: End) {
        self.0.end.set(Some(end));
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        self.0.ended.wait().await;
    }

    async fn request(&self, request: Request) -> Result<Answer, StoreError> {
        let (client, store) = (&self.0, &self.0.store);
        let number = client.requests.get() + 1;
        client.requests.set(number);
        if client.ended.is_set() {
            std::future::pending::<()>().await;
        }
        if let Some(end) = client.end.get()
            && number >= end.request
        {
            if end.carried_out {
                let _ = store.carry_out(&request);
            }
            client.ended.set();
            std::future::pending::<()>().await;
        }
        store.env.sleep(Nanos(store.env.random() % 2_000_000)).await;
        let no_answer = || StoreError::Unreachable("the answer was lost".to_owned());
        if store.away.get() {
            return Err(no_answer());
        }
        let (faults, dice) = (store.faults.get(), store.env.random() % 1000);
        if dice < faults.busy {
            store.env.mark("world_store_busy");
            return Err(StoreError::Busy("503 Slow Down".to_owned()));
        }
        if dice < faults.busy + faults.lost {
            store.env.mark("world_store_lost_answer");
            let _ = store.carry_out(&request);
            return Err(no_answer());
        }
        if dice < faults.busy + faults.lost + faults.late {
            store.env.mark("world_store_late_request");
            let delay = Nanos(store.env.random() % faults.late_within.0.max(1));
            let late = store.clone();
            store.env.spawn(Priority::Background, async move {
                late.env.sleep(delay).await;
                let _ = late.carry_out(&request);
            });
            return Err(no_answer());
        }
        let answer = store.carry_out(&request);
        store.env.sleep(Nanos(store.env.random() % 2_000_000)).await;
        answer
    }
}

impl<E: Env> Store for Client<E> {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        match self.request(Request::Get(key.to_owned(), range)).await? {
            Answer::Object(object) => Ok(object),
            _ => unreachable!("a GET has an object"),
        }
    }

    async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        condition: Condition,
    ) -> Result<String, StoreError> {
        match self.request(Request::Put(key.to_owned(), bytes, condition)).await? {
            Answer::Tag(etag) => Ok(etag),
            _ => unreachable!("a PUT has a tag"),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.request(Request::Delete(key.to_owned())).await.map(|_| ())
    }

    async fn list(&self, prefix: &str, after: &str) -> Result<Vec<String>, StoreError> {
        match self.request(Request::List(prefix.to_owned(), after.to_owned())).await? {
            Answer::Keys(keys) => Ok(keys),
            _ => unreachable!("a listing has keys"),
        }
    }
}
