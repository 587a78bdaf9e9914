//! The load: when requests go out, and what each of them waited.
//!
//! ```text
//! open loop     requests go out at times fixed beforehand, whatever became of those before
//! closed loop   each caller sends its next request when it has the answer to the last
//! ```
//!
//! In an open loop, latency is counted from the time at which the request *should* have gone out. If the server stalls,
//! everybody who would have come meanwhile is counted as waiting; a loop that waits with it would leave them out
//! ("coordinated omission").

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::stats::{Random, float};

/// When requests are to go out, counted from the start. Ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Vec<Duration>);

impl Schedule {
    /// `count` requests, evenly, `rate` each second.
    #[must_use]
    pub fn even(rate: f64, count: usize) -> Self {
        Self((0..count).map(|at| Duration::from_secs_f64(float(at) / rate)).collect())
    }

    /// `count` requests that know nothing of each other, `rate` each second on average (a Poisson process).
    #[must_use]
    pub fn random(rate: f64, count: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut at = 0.0;
        let times = (0..count).map(|_| {
            at -= random.unit().ln() / rate;
            Duration::from_secs_f64(at)
        });
        Self(times.collect())
    }

    /// `count` requests at once.
    #[must_use]
    pub fn burst(count: usize) -> Self {
        Self(vec![Duration::ZERO; count])
    }
}

/// One request of an open loop. Times are counted from the start of the load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shot<T> {
    /// When it should have gone out.
    pub due: Duration,
    /// When it went out. Much later than `due`: the generator itself was too slow.
    pub sent: Duration,
    /// When its answer was whole.
    pub done: Duration,
    /// What came.
    pub answer: T,
}

impl<T> Shot<T> {
    /// What its caller waited, in milliseconds: from when it should have gone out.
    pub fn waited_ms(&self) -> f64 {
        milliseconds(self.done.saturating_sub(self.due))
    }

    /// How late the generator was, in milliseconds.
    pub fn late_ms(&self) -> f64 {
        milliseconds(self.sent.saturating_sub(self.due))
    }
}

/// A time in milliseconds.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Sends each request at its time, and waits for all. The answers come in the order of the schedule.
///
/// Must be called within a `LocalSet`. Dropping it ends the requests that are under way.
///
/// # Errors
/// When the kernel gives no timer, or a request panicked.
pub async fn open_loop<T, F>(
    clock: &mut Clock,
    schedule: &Schedule,
    mut send: impl FnMut(usize) -> F,
) -> Result<Vec<Shot<T>>>
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let mut under_way = JoinSet::new();
    let start = Instant::now();
    for (index, due) in schedule.0.iter().copied().enumerate() {
        clock.sleep_until(start + due).await?;
        let request = send(index);
        under_way.spawn_local(async move {
            let sent = start.elapsed();
            let answer = request.await;
            (index, Shot { due, sent, done: start.elapsed(), answer })
        });
    }
    let mut shots = Vec::with_capacity(under_way.len());
    while let Some(shot) = under_way.join_next().await {
        shots.push(shot.context("a request of the load panicked")?);
    }
    shots.sort_by_key(|(index, _)| *index);
    Ok(shots.into_iter().map(|(_, shot)| shot).collect())
}

/// What a closed loop did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Throughput {
    /// What each request waited, in milliseconds, in the order in which they ended.
    pub waited_ms: Vec<f64>,
    /// How many ended in each whole slice of [`SLICE`].
    pub slices: Vec<usize>,
}

/// What a rate is counted over: short enough for a hundred of them in a run, long enough for many requests.
pub const SLICE: Duration = Duration::from_millis(100);

impl Throughput {
    /// Requests each second, one figure a slice.
    #[must_use]
    pub fn rates(&self) -> Vec<f64> {
        self.slices.iter().map(|count| float(*count) / SLICE.as_secs_f64()).collect()
    }
}

/// `callers` callers for `time`, each sending when it has its last answer.
///
/// # Errors
/// The first error of a caller; the others are ended.
pub async fn closed_loop<F>(
    callers: usize,
    time: Duration,
    send: impl Fn(usize) -> F + Clone + 'static,
) -> Result<Throughput>
where
    F: Future<Output = Result<()>> + 'static,
{
    let mut under_way = JoinSet::new();
    let start = Instant::now();
    for caller in 0..callers {
        let send = send.clone();
        under_way.spawn_local(async move {
            let mut ended = Vec::new();
            let mut begun = start.elapsed();
            while begun < time {
                send(caller).await?;
                let now = start.elapsed();
                ended.push((now, milliseconds(now - begun)));
                begun = now;
            }
            Ok::<_, anyhow::Error>(ended)
        });
    }
    let mut ended = Vec::new();
    while let Some(caller) = under_way.join_next().await {
        ended.extend(caller.context("a caller of the load panicked")??);
    }
    ended.sort_by_key(|(when, _)| *when);
    let whole = usize::try_from(time.as_nanos() / SLICE.as_nanos()).unwrap_or_default();
    let mut slices = vec![0; whole];
    for (when, _) in &ended {
        let slice = usize::try_from(when.as_nanos() / SLICE.as_nanos()).unwrap_or(usize::MAX);
        if let Some(count) = slices.get_mut(slice) {
            *count += 1;
        }
    }
    Ok(Throughput { waited_ms: ended.into_iter().map(|(_, waited)| waited).collect(), slices })
}

/// What wakes the generator. Tokio's own timer counts whole milliseconds, which is longer than what is measured.
#[derive(Debug)]
pub enum Clock {
    /// The kernel's high-resolution timer.
    Exact(Receiver),
    /// Tokio's: for tests, whose time is a number.
    Tokio,
}

impl Clock {
    /// The kernel's timer.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub fn exact() -> Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).context("no timer")?;
        // It is no pipe, but is waited for and read like one.
        Ok(Self::Exact(Receiver::from_owned_fd_unchecked(timer).context("no timer")?))
    }

    async fn sleep_until(&mut self, until: Instant) -> Result<()> {
        let wait = until.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            // Whoever is under way gets a turn also when the generator is behind.
            tokio::task::yield_now().await;
            return Ok(());
        }
        match self {
            Self::Tokio => tokio::time::sleep_until(until).await,
            Self::Exact(timer) => {
                let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
                let value = Timespec::try_from(wait).context("no such time")?;
                let flags = TimerfdTimerFlags::empty();
                rustix::time::timerfd_settime(
                    timer.as_fd(),
                    flags,
                    &Itimerspec { it_interval: zero, it_value: value },
                )?;
                // How often it has rung.
                timer.read_exact(&mut [0; 8]).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::sync::Semaphore;
    use tokio::task::LocalSet;

    use super::*;

    #[test]
    fn schedules_are_known_beforehand() {
        let even = Schedule::even(20.0, 3);
        assert_eq!(even.0, [0, 50, 100].map(Duration::from_millis));
        let random = Schedule::random(100.0, 10_000, 1);
        assert_eq!(random, Schedule::random(100.0, 10_000, 1));
        assert!(random.0.is_sorted());
        // 10,000 at 100 a second take 100 s, give or take three standard deviations of 1 s.
        let last = random.0.last().unwrap().as_secs_f64();
        assert!((97.0..103.0).contains(&last), "{last}");
    }

    /// A server of one thread that answers in 1 ms, and stalls for 500 ms at its third request.
    async fn stalling(server: Rc<Semaphore>, index: usize) {
        let turn = server.acquire().await.unwrap();
        let time = if index == 2 { 500 } else { 1 };
        tokio::time::sleep(Duration::from_millis(time)).await;
        drop(turn);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_felt_by_all_who_would_have_come() {
        let local = LocalSet::new();
        let server = Rc::new(Semaphore::new(1));
        let schedule = Schedule::even(100.0, 60);
        let mut clock = Clock::Tokio;
        let open = open_loop(&mut clock, &schedule, |index| stalling(Rc::clone(&server), index));
        let shots = local.run_until(open).await.unwrap();
        let waited: Vec<u128> = shots.iter().map(|shot| (shot.done - shot.due).as_millis()).collect();
        // Before the stall 1 ms each; the third waits it out; whoever came during it waits what was left of it and
        // the queue before it; 56 requests later (each takes 10 ms less and 1 ms more) all is well again.
        assert_eq!(waited[..6], [1, 1, 500, 491, 482, 473]);
        assert!(waited.windows(2).skip(2).all(|pair| pair[1] == 1 || pair[1] + 9 == pair[0]), "{waited:?}");
        assert_eq!(waited.iter().filter(|waited| **waited > 1).count(), 56);
        assert!(shots.iter().all(|shot| shot.sent == shot.due), "no request waited for another");
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_leaves_out_those_who_would_have_come() {
        let server = Rc::new(Semaphore::new(1));
        let count = Rc::new(std::cell::Cell::new(0));
        let send = move |_| {
            let (server, index) = (Rc::clone(&server), count.get());
            count.set(index + 1);
            async move {
                stalling(server, index).await;
                Ok(())
            }
        };
        let done = LocalSet::new().run_until(closed_loop(1, Duration::from_millis(800), send)).await.unwrap();
        // The same server, and one single request feels the stall. This is why latencies come from the open loop.
        assert_eq!(done.waited_ms.iter().filter(|waited| **waited > 1.5).count(), 1);
        assert_eq!(done.slices.iter().sum::<usize>() + 1, done.waited_ms.len(), "the last ended with the time");
        assert_eq!(done.slices, [2, 0, 0, 0, 0, 98, 100, 100]);
    }
}
