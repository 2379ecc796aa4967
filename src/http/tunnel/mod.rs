//! Tunnel: a connection that a node opens, and on which it is the server.
//!
//! ```text
//! node ── GET, Upgrade: cynode-tunnel ──▶ orchestrator      (HTTP/1.1, over TLS or TCP)
//! node ◀── 101 ── orchestrator
//! node ◀── HTTP/2 requests of the Worker API ── orchestrator
//! ```
//!
//! So a node behind NAT or a firewall needs no open port, and calls to it are as encrypted as its own. The node
//! [dials](Dialer), and [serves](serve()) the router of its Worker API on what follows; the orchestrator is the
//! [HTTP/2 client](TunnelConnection), with prior knowledge. A [link](TunnelLink) is the way of its calls, which outlives
//! the connection: once the node has connected again, it leads there.
//!
//! # Flow control
//!
//! hyper gives room back to the sender when a body is read, not when it arrives. So a reader that stalls fills the window of
//! its stream, and that share of the connection's window. If the connection's window were smaller than the windows of all
//! streams together, some stalled log readers could use it up, and a cancel would get no answer. It is as large
//! as all of them, [`STREAM_WINDOW`] × [`MAX_STREAMS`], and [`FRAME_ROOM`] times that. This is a bound, not memory: only what
//! arrived and was not read is held, and only on streams that this side has opened or accepted. Windows do not adapt,
//! since that would break the equation.
//!
//! The factor is for small frames, such as single lines of a log. Each that was not read costs memory beyond its bytes, so
//! the HTTP/2 of the receiver ends a connection where these costs, counted as 256 bytes less the length of the frame, exceed
//! half of the connection's window. Without the factor, one user with some dozens of stalled readers would end
//! the tunnel of a node, and the calls of everybody else on it.
//!
//! A window of 256 KiB lets one stream carry 256 KiB in a round trip: 25 MB/s at 10 ms.
//!
//! # Liveness
//!
//! Both ends ping each [`PING_INTERVAL`], also while idle, and close the connection where no answer comes within
//! [`PING_TIMEOUT`]. So a half-open connection is found within 13 s. The end of a connection ends all of its calls with an
//! error, as that of a TCP connection does.

mod connection;
mod cut;
mod dial;
mod frames;
mod link;
mod serve;

pub use connection::{TunnelConnection, open};
pub use dial::{DialIdentity, Dialer};
pub use link::{NOT_CONNECTED, TunnelLink};
pub use serve::serve;

use std::time::Duration;

/// Name of the protocol in `Upgrade`.
pub const PROTOCOL: &str = "cynode-tunnel";
/// Base of URLs of calls over a tunnel; its host is a name of nobody.
pub const TUNNEL_URL: &str = "http://tunnel";
/// Concurrent streams of one tunnel: twice as many as one user may have open, 128 readers of logs and 128 calls of sandboxes,
/// so that nobody alone fills the tunnel of a node with readers that stall.
const MAX_STREAMS: u32 = 512;
/// Fewest concurrent streams that a peer may allow.
const MIN_STREAMS: usize = 16;
/// Bytes that may be under way on one stream.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes that may be under way on all streams.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS * FRAME_ROOM;
/// Room for small frames: 256 readers, the most of one user, may stall on streams full of frames of 60 bytes.
const FRAME_ROOM: u32 = 4;
/// Bytes of one stream that wait to be sent.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// Longest head of a request or answer, in bytes, as at other listeners.
const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// Interval of pings.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Time for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests;
