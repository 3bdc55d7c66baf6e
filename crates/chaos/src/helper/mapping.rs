//! Memory straight from the system: the only unsafe code of this crate, for one reason. What an allocator has, it keeps
//! after it is freed; what was mapped is gone when it is unmapped.

#![expect(unsafe_code, reason = "mmap, madvise and munmap; see the SAFETY arguments below")]

use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Anonymous memory that nobody has a reference to, and that is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Maps so many bytes and makes the system provide them. `page` is the size of a page.
    pub(super) fn populated(bytes: usize, page: usize) -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: without an address to begin at, the system chooses one where nothing is.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        let mapping = Self { start, bytes };
        // A core dump of it would be of no use to anybody; nor would one that has it do harm.
        let _ = mapping.advise(Advice::LinuxDontDump);
        match mapping.advise(Advice::LinuxPopulateWrite) {
            // Before Linux 5.14.
            Err(Errno::INVAL) => mapping.touch(page),
            populated => populated?,
        }
        Ok(mapping)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: the range is the whole of a mapping of ours, to which there is no reference, and neither advice takes
        // away or changes what is in it.
        unsafe { madvise(self.start.as_ptr().cast(), self.bytes, advice) }
    }

    fn touch(&self, page: usize) {
        for offset in (0..self.bytes).step_by(page.max(1)) {
            // SAFETY: the offset is within the mapping, which is ours alone, writable, and of plain bytes.
            unsafe { self.start.add(offset).write_volatile(1) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the whole of a mapping of ours, to which there is no reference, and after this there is no
        // `Mapping` of it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours cannot be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Without the size of a page, which rustix cannot tell under valgrind.
    fn anonymous() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB")).unwrap();
        kib.trim().parse::<u64>().unwrap() << 10
    }

    #[test]
    fn what_is_mapped_is_there_and_what_is_dropped_is_not() {
        const BYTES: u64 = 256 << 20;
        // Other tests of this process have memory, too.
        const SLACK: u64 = 32 << 20;
        let before = anonymous();
        let mapping = Mapping::populated(BYTES as usize, 4096).unwrap();
        let there = anonymous();
        assert!(there.abs_diff(before + BYTES) < SLACK, "{before} {there}");
        mapping.touch(4096);
        assert!(anonymous().abs_diff(there) < SLACK);
        drop(mapping);
        assert!(anonymous().abs_diff(before) < SLACK);
        // Valgrind has another word for it.
        let refused = Mapping::populated(usize::MAX / 4096 * 4096, 4096).unwrap_err();
        assert!(matches!(refused, Errno::NOMEM | Errno::INVAL), "{refused}");
    }
}
