//! The one thread that traces all stubs, and the way to give it orders from any other.
//!
//! The thread blocks in `waitpid` while it has tracees, in its channel while it has none: idle, it costs
//! nothing. To give an order, a caller queues it and interrupts `waitpid` with a signal whose handler does
//! nothing. The signal may arrive just before the thread enters `waitpid` and be lost; so it is repeated
//! every few ms until the order has been taken. Orders are carried out one after the other.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{AdoptError, AdoptReason, StubError};
use crate::keeper::{ADOPT_LIMIT, Keeper, Member, ORDER_LIMIT, StubEvent};
use crate::sys;
use mosix_ptrace::sys::{End, wait};

/// Time between two attempts to wake the thread.
const WAKE_INTERVAL: Duration = Duration::from_millis(2);

/// Longest time an order waits for others to be done.
const QUEUE_LIMIT: Duration = Duration::from_secs(20);

const QUEUED: u8 = 0;
const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;

struct Order {
    state: Arc<AtomicU8>,
    run: Box<dyn FnOnce(&mut Keeper) + Send>,
}

/// Makes stubs of home bodies and watches them. One per daemon; all methods may be called from any thread
/// (not from an event handler) and block until done, for a bounded time.
///
/// Dropping it ends its thread, and the kernel then kills all its stubs.
pub struct Watcher {
    orders: Sender<Order>,
    tid: i32,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the thread. Installs a handler that does nothing for one real-time signal (`SIGRTMAX - 1`) in this process.
    pub fn start() -> std::io::Result<Watcher> {
        let waker = waker();
        sys::install_waker(waker)?;
        let mark = sys::random()?;
        let (orders, queue) = channel();
        let (tell_tid, tid) = sync_channel(1);
        let thread = std::thread::Builder::new().name("deputy-watcher".into()).spawn(move || {
            sys::only_accept(waker);
            let _ = tell_tid.send(sys::own_tid());
            work(&queue, Keeper::new(mark));
        })?;
        let tid = tid.recv().map_err(|_| std::io::Error::other("the watcher thread ended at once"))?;
        Ok(Watcher { orders, tid, thread: Some(thread) })
    }

    /// Makes a stub of the process `pid`, alone in the frozen cgroup `freezer_dir`, thaws it and watches it.
    ///
    /// `swallow` and `on_event`: see [`Member`]. When it returns an error, the process is frozen and did not run.
    pub fn adopt(&self, pid: i32, freezer_dir: &Path, swallow: &[i32], on_event: Box<dyn Fn(StubEvent) + Send>) -> Result<(), AdoptError> {
        self.adopt_group(vec![Member { pid, swallow: swallow.to_vec(), on_event }], freezer_dir)
    }

    /// Makes stubs of all processes in the frozen cgroup `freezer_dir`, thaws it and watches them. Stubs made
    /// earlier may be in it too. On errors see [`AdoptError`].
    pub fn adopt_group(&self, members: Vec<Member>, freezer_dir: &Path) -> Result<(), AdoptError> {
        let first = members.first().map_or(0, |member| member.pid);
        let dir = freezer_dir.to_path_buf();
        let done = self.order(ADOPT_LIMIT * 2, first, move |keeper| keeper.adopt(members, &dir));
        done.unwrap_or_else(|error| Err(AdoptError { pid: first, reason: AdoptReason::Watcher(Box::new(error)) }))
    }

    /// Ends a stub as the guest ended, so that the wait status its parent gets is the same.
    ///
    /// Only the core flag is lost: the stub dumps no core. No event follows. If it died in another way before,
    /// the error is [`StubError::Gone`].
    pub fn finish(&self, pid: i32, end: End) -> Result<(), StubError> {
        self.order(ORDER_LIMIT * 2, pid, move |keeper| keeper.finish(pid, end))?
    }

    /// Stops a stub by SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU, as the guest was. Its parent sees it stopped. Nothing happens if it is.
    pub fn stop(&self, pid: i32, signal: i32) -> Result<(), StubError> {
        self.order(ORDER_LIMIT * 2, pid, move |keeper| keeper.stop(pid, signal))?
    }

    /// Continues a stopped stub. Its parent sees it continued. Nothing happens if it was not stopped.
    pub fn cont(&self, pid: i32) -> Result<(), StubError> {
        self.order(ORDER_LIMIT * 2, pid, move |keeper| keeper.cont(pid))?
    }

    /// Lets go of a stub: it goes on to pause, or stays stopped, unwatched, and signals act on it by default.
    pub fn forget(&self, pid: i32) -> Result<(), StubError> {
        self.order(ORDER_LIMIT * 2, pid, move |keeper| keeper.forget(pid))?
    }

    /// Pids of all stubs watched now, in no order.
    pub fn stubs(&self) -> Result<Vec<i32>, StubError> {
        self.order(ORDER_LIMIT, 0, |keeper| keeper.pids())
    }

    /// Queues an order, wakes the thread until it takes it, and waits for the answer: `limit` at most once it is taken.
    fn order<T: Send + 'static>(
        &self,
        limit: Duration,
        pid: i32,
        work: impl FnOnce(&mut Keeper) -> T + Send + 'static,
    ) -> Result<T, StubError> {
        let (answer, result) = sync_channel(1);
        let state = Arc::new(AtomicU8::new(QUEUED));
        let run = Box::new(move |keeper: &mut Keeper| drop(answer.send(work(keeper))));
        self.orders.send(Order { state: Arc::clone(&state), run }).map_err(|_| StubError::WatcherEnded)?;
        let mut give_up = Instant::now() + QUEUE_LIMIT;
        let mut taken = false;
        loop {
            if !taken && state.load(Ordering::Acquire) == TAKEN {
                taken = true;
                give_up = Instant::now() + limit;
            }
            let pause = if taken {
                give_up.saturating_duration_since(Instant::now())
            } else {
                // ESRCH if it has ended: then the channel is closed, and recv says so
                let _ = sys::wake_thread(self.tid, waker());
                WAKE_INTERVAL
            };
            match result.recv_timeout(pause) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Disconnected) => return Err(StubError::WatcherEnded),
                Err(RecvTimeoutError::Timeout) if Instant::now() < give_up => {}
                Err(RecvTimeoutError::Timeout) if taken => return Err(StubError::Timeout { pid }),
                Err(RecvTimeoutError::Timeout) => {
                    if claim(&state, GIVEN_UP) {
                        return Err(StubError::Busy);
                    }
                }
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let told = self.order(ORDER_LIMIT, 0, |keeper| keeper.ending = true);
        if let (Ok(()), Some(thread)) = (told, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn waker() -> i32 {
    libc::SIGRTMAX() - 1
}

/// Changes the state of an order that nobody has claimed yet.
fn claim(state: &AtomicU8, to: u8) -> bool {
    state.compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// The watcher thread.
fn work(queue: &Receiver<Order>, mut keeper: Keeper) {
    while !keeper.ending {
        while let Ok(order) = queue.try_recv() {
            carry_out(order, &mut keeper);
        }
        if keeper.ending {
            return;
        }
        match wait(-1, true) {
            Ok(Some((pid, stop))) => keeper.handle(pid, stop),
            Ok(None) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            // no tracee: nothing can happen until there is an order
            Err(_) => match queue.recv() {
                Ok(order) => carry_out(order, &mut keeper),
                Err(_) => return,
            },
        }
    }
}

fn carry_out(order: Order, keeper: &mut Keeper) {
    if claim(&order.state, TAKEN) {
        (order.run)(keeper);
    }
}
