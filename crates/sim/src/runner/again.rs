//! Requests that a process had not answered when it died, and that its block devices have for the
//! next one.
//!
//! The client that asked is gone, and for it the outcome is unknown. The write takes effect once
//! more all the same, with the same data, at some moment before the next process answers.

use std::rc::Rc;

use ubcache_env::{Env, Priority};

use super::{Instance, Run};
use crate::executor::SimEnv;
use crate::front::{Front, HeldRequest};
use crate::oracle::OpKind;
use crate::oracle::value::{Decoded, Value, decode};
use crate::system::System;

/// The client number of those who asked a process that died.
const BEFORE: u32 = 97;

impl<S: System> Run<S> {
    /// Takes what the devices of an instance have, which ends now.
    pub(super) fn hold_requests(&self, instance: &Instance<S>) {
        let of_all = instance.fronts.iter().enumerate();
        let held = of_all.flat_map(|(volume, front)| {
            front.held().into_iter().map(move |request| (volume, request))
        });
        self.held.borrow_mut().extend(held);
    }

    /// Gives the requests to the next instance.
    pub(super) fn carry_out_again(&self, env: &SimEnv, fronts: &[Rc<Front<S::Volume>>]) {
        for (volume, request) in self.held.take() {
            self.carry_out_one(env, volume as u32, fronts[volume].clone(), request);
        }
    }

    fn carry_out_one(
        &self,
        env: &SimEnv,
        volume: u32,
        front: Rc<Front<S::Volume>>,
        request: HeldRequest,
    ) {
        let (kind, range) = (request.kind(), request.range);
        let values = values_of(volume, &request);
        let workload = self.workload.clone();
        let op = workload.oracle.borrow_mut().begin_again(
            env.now(),
            BEFORE,
            (volume, range),
            kind,
            &values,
        );
        workload.busy.set(workload.busy.get() + 1);
        let inside = env.clone();
        env.spawn(Priority::Foreground, async move {
            let result = front.carry_out_again(request).await;
            let result = workload.outcome("request of the process before", volume, result);
            if matches!(kind, OpKind::Write { .. }) && result.is_ok() {
                workload.reach(|reached| reached.carried_out_again = true);
            }
            let mut oracle = workload.oracle.borrow_mut();
            match kind {
                OpKind::Read => oracle.end_read(inside.now(), op, &result),
                _ => oracle.end(inside.now(), op, &result.map(drop)),
            }
            drop(oracle);
            workload.busy.set(workload.busy.get() - 1);
            workload.changed.notify_all();
        });
    }
}

/// The values that a write has for its sectors.
fn values_of(volume: u32, request: &HeldRequest) -> Vec<Value> {
    let Some(data) = &request.data else { return Vec::new() };
    let sectors = (request.range.start.0..).zip(data.as_slice().chunks_exact(512));
    sectors
        .map(|(sector, bytes)| match decode(volume, sector, bytes) {
            Decoded::Value(value) => value,
            Decoded::Wrong(found) => panic!("a client wrote {found} to sector {sector}"),
        })
        .collect()
}
