//! The same authenticated connection, for a thread that blocks.
//!
//! The memory of a process is read, sent, received and written by threads of their own: page after page through an event loop would cost a
//! switch each, and the last ones are sent while the process stands still. A connection is made and greeted as usual ([`crate::tls`]) and
//! then handed over whole, with what TLS has already received.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustls::{ClientConnection, ServerConnection, StreamOwned};

use crate::tls::Stream;

/// An authenticated, encrypted connection with blocking reads and writes.
#[derive(Debug)]
pub struct BlockingStream {
    tls: Side,
    tcp: TcpStream,
}

#[derive(Debug)]
enum Side {
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

/// Ends a [`BlockingStream`] from another thread: whoever reads or writes gets an error.
#[derive(Debug)]
pub struct Breaker(TcpStream);

impl BlockingStream {
    /// Takes a connection over. A read or write that makes no progress for `patience` fails.
    ///
    /// # Errors
    /// From the system; the connection is closed then.
    pub fn new(stream: Stream, patience: Duration) -> io::Result<Self> {
        let own = |tcp: tokio::net::TcpStream| -> io::Result<(TcpStream, TcpStream)> {
            let tcp = tcp.into_std()?;
            tcp.set_nonblocking(false)?;
            tcp.set_read_timeout(Some(patience))?;
            tcp.set_write_timeout(Some(patience))?;
            Ok((tcp.try_clone()?, tcp))
        };
        Ok(match stream {
            Stream::Client(stream) => {
                let (tcp, connection) = stream.into_inner();
                let (other, tcp) = own(tcp)?;
                Self { tls: Side::Client(Box::new(StreamOwned::new(connection, tcp))), tcp: other }
            }
            Stream::Server(stream) => {
                let (tcp, connection) = stream.into_inner();
                let (other, tcp) = own(tcp)?;
                Self { tls: Side::Server(Box::new(StreamOwned::new(connection, tcp))), tcp: other }
            }
        })
    }

    /// The means to end it from elsewhere.
    ///
    /// # Errors
    /// From the system (descriptors).
    pub fn breaker(&self) -> io::Result<Breaker> {
        self.tcp.try_clone().map(Breaker)
    }

    /// Says that nothing more will be written, and waits until the peer has done the same (and with that has read everything).
    ///
    /// # Errors
    /// The connection broke, or the peer went on sending.
    pub fn finish(mut self) -> io::Result<()> {
        match &mut self.tls {
            Side::Client(stream) => stream.conn.send_close_notify(),
            Side::Server(stream) => stream.conn.send_close_notify(),
        }
        self.flush()?;
        match self.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the peer sent something after the end")),
        }
    }
}

impl Breaker {
    /// Ends the connection; ended ones stay so.
    pub fn cut(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Read for BlockingStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Side::Client(stream) => stream.read(buffer),
            Side::Server(stream) => stream.read(buffer),
        }
    }
}

impl Write for BlockingStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Side::Client(stream) => stream.write(bytes),
            Side::Server(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Side::Client(stream) => stream.flush(),
            Side::Server(stream) => stream.flush(),
        }
    }
}
