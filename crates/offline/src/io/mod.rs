//! I/O of the tools: bounds, read-ahead, threads, progress.
//!
//! | file | holds |
//! |---|---|
//! | `read` | reads in the bounds of the device, and around what is unreadable |
//! | `read_ahead` | [`ReadAhead`](read_ahead::ReadAhead): reads ranges while threads inspect them |
//! | `prefetched` | ranges that were read before the walk asks for them |
//! | `buffer_pool` | buffers that are read into again |
//! | `thread_pool`, `ordered_queue` | work for several threads, with results in order |
//! | `progress` | [`Progress`], [`Watcher`] |

pub(crate) mod buffer_pool;
mod ordered_queue;
pub(crate) mod prefetched;
pub(crate) mod progress;
pub(crate) mod read;
pub(crate) mod read_ahead;
pub(crate) mod thread_pool;

pub use self::progress::{Progress, Watcher};
