//! TLS on top of the TCP connections of `ureq`, whose own has no rule for pins.
//!
//! The connection below keeps its limits of time, and ends at once where its agent is shut down. The handshake, and with
//! it the check of the server, is over before `ureq` gets the connection: no byte of a request is sent before.

use crate::tls::{Trust, server_name};
use rustls::{ClientConnection, StreamOwned};
use std::{
    fmt,
    io::{self, Read as _, Write as _},
    sync::Arc,
};
use ureq::{
    Error,
    unversioned::transport::{
        Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
        TransportAdapter,
    },
};

/// Connector that encrypts the connections for `https://`.
#[derive(Debug)]
pub(super) struct TlsLayer(pub(super) Trust);

impl<In: Transport> Connector<In> for TlsLayer {
    type Out = Either<In, TlsTransport<In>>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else {
            return Ok(None);
        };
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let name = server_name(details.uri.host().unwrap_or_default())?;
        let mut connection =
            ClientConnection::new(self.0.config()?, name).map_err(io::Error::other)?;
        let mut socket = TransportAdapter::new(transport, Arc::clone(&details.current_time));
        // The limit of the whole connection, anew for each read and write: a slow server may use it several times.
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket)?;
        let buffers = LazyBuffers::new(
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(Either::B(TlsTransport {
            buffers,
            stream: StreamOwned::new(connection, socket),
        })))
    }
}

/// Encrypted connection.
pub(super) struct TlsTransport<In: Transport> {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter<In>>,
}

impl<In: Transport> Transport for TlsTransport<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output)?;
        self.stream.flush()?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl<In: Transport> fmt::Debug for TlsTransport<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport")
            .field("below", &self.stream.sock.get_ref())
            .finish_non_exhaustive()
    }
}
