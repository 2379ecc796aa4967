//! Memory allocator: settings that return freed memory to the system.

/// Size from which a block is mapped by itself, so that it returns to the system as soon as it is freed.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: i32 = 256 * 1024;
/// Heaps that threads share. glibc's default, eight for each core, keeps as many half-empty ones.
#[cfg(target_env = "gnu")]
const MAX_ARENAS: i32 = 4;

/// Returns freed memory early. By default, glibc raises its threshold with each large block that is freed, so that
/// the process keeps its largest size.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
pub(super) fn tune_allocator() {
    for (setting, value) in [
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (libc::M_ARENA_MAX, MAX_ARENAS),
    ] {
        // SAFETY: mallopt takes two numbers and no pointers, and only one thread runs yet.
        if unsafe { libc::mallopt(setting, value) } == 0 {
            tracing::debug!(setting, "allocator setting not applied");
        }
    }
}

/// Other allocators have no such settings.
#[cfg(not(target_env = "gnu"))]
pub(super) fn tune_allocator() {}
