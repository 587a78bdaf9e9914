//! What machines need of the processor, and the first program of one of its kernel.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Adds bytes that nobody else has to the kernel's generator, credits them, and lets all that draws from it draw anew.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn reseed(seed: &[u8; 32]) -> io::Result<()> {
    /// `struct rand_pool_info` of linux/random.h with its buffer.
    #[repr(C)]
    struct Entropy {
        bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; 32],
    }
    const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
    const RESEED: libc::c_ulong = 0x5207;
    let device = std::fs::File::open("/dev/urandom")?;
    let entropy = Entropy { bits: 256, size: 32, bytes: *seed };
    // SAFETY: RNDADDENTROPY reads one header and as many bytes as that says, which are those of `entropy`.
    if unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const entropy) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: RNDRESEEDCRNG has no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), RESEED) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How fast this processor's counter of ticks is: thousands in a second. 0 where it has none.
#[must_use]
pub fn tsc_khz() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every processor of this architecture has the instruction, which reads a counter.
        let ticks = || unsafe { core::arch::x86_64::_rdtsc() };
        let measure = || {
            let (began, first) = (Instant::now(), ticks());
            std::thread::sleep(Duration::from_millis(30));
            let (last, took) = (ticks(), began.elapsed());
            u128::from(last.saturating_sub(first)) * 1_000_000 / took.as_nanos().max(1)
        };
        // Whoever is interrupted between the two readings is wrong, seldom twice.
        let mut seen = [measure(), measure(), measure()];
        seen.sort_unstable();
        u64::try_from(seen[1]).unwrap_or(0)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_come_as_fast_each_time() {
        let (one, other) = (tsc_khz(), tsc_khz());
        assert!(one > 100_000 && one.abs_diff(other) < one / 100, "{one} {other}");
    }
}
