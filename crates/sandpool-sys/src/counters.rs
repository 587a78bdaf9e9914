//! Counters in memory that two processes share: one counts, the other reads, and neither asks the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Numbers of one counter: two that go together.
type Pair = [AtomicU64; 2];

/// A file in memory that is an array of counters. They outlive whoever counts.
#[derive(Debug)]
pub struct Counters {
    at: NonNull<Pair>,
    count: usize,
}

// SAFETY: what `at` points to is atomic numbers, which any thread may use, and is mapped as long as `self` lives.
unsafe impl Send for Counters {}
// SAFETY: as above.
unsafe impl Sync for Counters {}

impl Counters {
    /// `count` of them, and the file to hand to the other process. It can neither grow nor shrink.
    ///
    /// # Errors
    /// `ENOMEM` and the like.
    pub fn create(count: usize) -> io::Result<(OwnedFd, Arc<Self>)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("sandpool-counters", flags)?;
        rustix::fs::ftruncate(&file, bytes(count) as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let counters = Self::map(&file, count)?;
        Ok((file, Arc::new(counters)))
    }

    /// Those of the process that made the file.
    ///
    /// # Errors
    /// `InvalidInput` for a file that could shrink under us, or is none of counters.
    pub fn open(file: &OwnedFd) -> io::Result<Arc<Self>> {
        let length = usize::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
        let is_fixed = rustix::fs::fcntl_get_seals(file)?.contains(SealFlags::GROW | SealFlags::SHRINK);
        if !is_fixed || length == 0 || length % size_of::<Pair>() != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Arc::new(Self::map(file, length / size_of::<Pair>())?))
    }

    fn map(file: impl AsFd, count: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses the place, so that nothing is mapped over; the file is as long as what is mapped, and sealed
        // against getting shorter.
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes(count),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )
        }?;
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { at, count })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The one with this number; past the last they begin anew.
    #[must_use]
    pub fn counter(self: &Arc<Self>, number: u32) -> Counter {
        Counter { all: Arc::clone(self), number: number as usize % self.count }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing borrows from it any more. A failure leaves it mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), bytes(self.count)) };
    }
}

fn bytes(count: usize) -> usize {
    count * size_of::<Pair>()
}

/// One counter.
#[derive(Clone, Debug)]
pub struct Counter {
    all: Arc<Counters>,
    number: usize,
}

impl Counter {
    fn pair(&self) -> &Pair {
        // SAFETY: `number` is below `count`, so it lies in what is mapped, which lives as long as `all`; atomic numbers may be shared,
        // and every bit pattern is one.
        unsafe { self.all.at.add(self.number).as_ref() }
    }

    /// Adds to its two numbers.
    pub fn add(&self, first: u64, second: u64) {
        for (number, more) in self.pair().iter().zip([first, second]) {
            if more > 0 {
                number.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// Its two numbers.
    #[must_use]
    pub fn read(&self) -> [u64; 2] {
        self.pair().each_ref().map(|number| number.load(Ordering::Relaxed))
    }

    /// Begins anew.
    pub fn clear(&self) {
        for number in self.pair() {
            number.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_counts_the_other_reads() {
        let (file, here) = Counters::create(3).unwrap();
        let there = Counters::open(&file).unwrap();
        assert_eq!(there.count(), 3);
        there.counter(1).add(5, 0);
        there.counter(1).add(2, 9);
        // Past the last they begin anew.
        assert_eq!((here.counter(1).read(), here.counter(4).read(), here.counter(2).read()), ([7, 9], [7, 9], [0, 0]));
        here.counter(1).clear();
        assert_eq!(there.counter(1).read(), [0, 0]);
        // They outlive who counts, and the file's other holders.
        there.counter(2).add(1, 1);
        drop((there, file));
        assert_eq!(here.counter(2).read(), [1, 1]);
    }

    #[test]
    fn a_file_that_could_shrink_is_refused() {
        let file = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, 64).unwrap();
        Counters::open(&file).unwrap_err();
        rustix::fs::ftruncate(&file, 60).unwrap();
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK).unwrap();
        Counters::open(&file).unwrap_err();
    }
}
