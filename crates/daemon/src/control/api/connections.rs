//! Connections to the control socket: how many there may be, how long they may take, their end.
//!
//! A connection that sends nothing, or half a request, costs nobody else an answer: it is closed
//! after a while, and at once if there are as many as there may be and another one comes.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use super::fleet::Fleet;
use super::phase::Phase;
use super::routes::router;
use super::stream::{Connection, Stream};
use crate::control::refusal::{ErrorBody, Kind, Refusal};

/// Connections that there may be.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Time for the head of a request, from the end of the one before.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// The longest head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// After a failed accept: time until the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The response to one connection too many: all others wait for an answer.
fn full() -> String {
    let said = format_args!("{CONNECTIONS_MAX} requests are being answered").to_string();
    let error = Refusal::new(Kind::Busy, said).expected("fewer").advice("wait for one of them");
    let body = serde_json::to_string(&ErrorBody { error });
    let body = body.expect("plain data always serializes");
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The connections that there are, the oldest first.
struct All {
    router: axum::Router,
    busy: watch::Sender<usize>,
    phase: watch::Receiver<Phase>,
    tasks: JoinSet<()>,
    connections: Vec<(AbortHandle, Arc<Connection>)>,
}

/// Serves until the phase is that of the end.
pub(super) async fn serve(
    listener: UnixListener,
    fleet: Fleet,
    mut phase: watch::Receiver<Phase>,
    busy: watch::Sender<usize>,
) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the control socket can't be served: {error}"),
    };
    let mut all = All {
        router: router(fleet),
        busy,
        phase: phase.clone(),
        tasks: JoinSet::new(),
        connections: Vec::new(),
    };
    let mut failing = false;
    let patience = loop {
        let now = *phase.borrow_and_update();
        if let Phase::Ending(patience) = now {
            break patience;
        }
        tokio::select! {
            changed = phase.changed() => {
                if changed.is_err() {
                    break Duration::ZERO;
                }
            }
            _ = all.tasks.join_next(), if !all.tasks.is_empty() => all.forget_ended(),
            accepted = listener.accept(), if now == Phase::Open => {
                let failed_before = std::mem::replace(&mut failing, accepted.is_err());
                match accepted {
                    Ok((stream, _)) => all.add(stream),
                    Err(error) => {
                        if !failed_before {
                            tracing::warn!(%error, "can't accept control clients for now");
                        }
                        all.make_room();
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    };
    drop(listener);
    all.finish(Instant::now() + patience).await;
}

impl All {
    fn add(&mut self, stream: UnixStream) {
        self.forget_ended();
        if self.connections.len() >= CONNECTIONS_MAX && !self.make_room() {
            // It fits into the buffer of a new connection.
            let _ = stream.try_write(full().as_bytes());
            return;
        }
        let connection = Connection::new(stream, self.busy.clone());
        let serving = one(connection.clone(), self.router.clone(), self.phase.clone());
        self.connections.push((self.tasks.spawn(serving), connection));
    }

    /// Closes the oldest connection that waits for no answer; `false`: there is none.
    fn make_room(&mut self) -> bool {
        let idle = |(_, connection): &(AbortHandle, Arc<Connection>)| !connection.is_answering();
        let Some(at) = self.connections.iter().position(idle) else { return false };
        self.connections.remove(at).0.abort();
        true
    }

    fn forget_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.connections.retain(|(task, _)| !task.is_finished());
    }

    /// Waits for the connections, which close themselves when they have their responses. Those that
    /// another program answers stay as they are.
    async fn finish(&mut self, end: Instant) {
        loop {
            self.forget_ended();
            if self.connections.iter().all(|(_, connection)| connection.is_given_away()) {
                return;
            }
            if timeout_at(end, self.tasks.join_next()).await.is_err() {
                return;
            }
        }
    }
}

/// Serves one connection to its end.
async fn one(connection: Arc<Connection>, router: axum::Router, mut phase: watch::Receiver<Phase>) {
    let router = TowerToHyperService::new(router);
    let of_request = connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(of_request.clone());
        router.call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(Stream(connection), service);
    let mut serving = std::pin::pin!(serving);
    let ending = async move {
        // Without a sender it is the end as well.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Ending(_))).await.is_ok();
    };
    // Errors are the client's: it went away, was too slow, or spoke something else.
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = ending => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection ended");
    }
}
