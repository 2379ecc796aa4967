//! How the allocator of a role's process gives memory back.

/// Blocks of at least this size are mapped one by one, so that the system has them back as soon as they are
/// freed.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: i32 = 256 * 1024;
/// Heaps that threads share. glibc's own number, eight for each core, keeps so many half-empty ones.
#[cfg(target_env = "gnu")]
const MAX_ARENAS: i32 = 4;

/// Has the process keep little of what it frees. By itself glibc learns from a large block that is freed to
/// keep the next ones on its heaps, so that a process stays as large as its largest moment.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the C library has no safe way to say this")]
pub(super) fn tune_allocator() {
    for (setting, value) in [
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (libc::M_ARENA_MAX, MAX_ARENAS),
    ] {
        // SAFETY: mallopt takes two numbers and no pointers, and only one thread runs yet.
        if unsafe { libc::mallopt(setting, value) } == 0 {
            tracing::debug!(setting, "the allocator stays as it is");
        }
    }
}

/// Other allocators have no such settings.
#[cfg(not(target_env = "gnu"))]
pub(super) fn tune_allocator() {}
