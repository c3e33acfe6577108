//! Fills the routing table of the pod's own network namespace.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use clap::Args;
use nix::net::if_::if_nametoindex;
use rtnetlink::{RouteMessageBuilder, packet_route::route::RouteScope};
use serde_json::json;

use super::print;

/// Of the addresses that nobody in the lab has (RFC 6598).
const FIRST: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);

#[derive(Debug, Args)]
pub struct Routes {
    /// Where they lead.
    #[arg(long)]
    interface: String,
    /// To so many addresses in a row, from 100.64.0.0 on.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
    count: u32,
}

impl Routes {
    pub(super) fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        runtime.block_on(self.add())?;
        print(&json!({"routes": self.count}))
    }

    async fn add(&self) -> Result<()> {
        let interface = if_nametoindex(&*self.interface).with_context(|| self.interface.clone())?;
        let (connection, handle, _) = rtnetlink::new_connection().context("a netlink socket")?;
        tokio::spawn(connection);
        for number in 0..self.count {
            let to = Ipv4Addr::from_bits(FIRST.to_bits() + number);
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, 32)
                .output_interface(interface)
                .scope(RouteScope::Link)
                .build();
            let added = handle.route().add(route).replace().execute().await;
            added.with_context(|| format!("add a route to {to}"))?;
        }
        Ok(())
    }
}
