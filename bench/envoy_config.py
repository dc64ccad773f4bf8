"""Pieces of Envoy configuration (v3 API, as dictionaries that Envoy reads as JSON): mutual TLS 1.3 with an exact SPIFFE
ID on either side, a plain TCP proxy, HBONE's CONNECT from the client's side and its termination on the server's."""

TYPE = "type.googleapis.com/envoy.extensions"
# HBONE peers open at most this many streams on one connection (Istio's ztunnel and waypoints).
HBONE_STREAMS = 100


def bootstrap(listeners, clusters, admin_socket=None):
    """A whole static configuration. Statistics are served on the Unix socket `admin_socket`, if given."""
    config = {"static_resources": {"listeners": listeners, "clusters": clusters}}
    if admin_socket:
        config["admin"] = {"address": {"pipe": {"path": str(admin_socket)}}}
    return config


def listener(name, address, network_filter, downstream_tls=None):
    """A TCP listener on `address` (host, port) with one filter, and mutual TLS if `downstream_tls` is given."""
    chain = {"filters": [network_filter]}
    if downstream_tls:
        chain["transport_socket"] = downstream_tls
    return {"name": name, "address": socket_address(address), "filter_chains": [chain]}


def cluster(name, address, upstream_tls=None, http2=None):
    """One fixed upstream. `http2` (options, may be empty) makes it carry streams rather than connections."""
    config = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": socket_address(address)}}]}]},
        # The default of 1,024 connections and requests would refuse some of 1,000 idle ones beside a load.
        "circuit_breakers": {"thresholds": [dict.fromkeys(
            ("max_connections", "max_pending_requests", "max_requests"), 20_000)]},
    }
    if upstream_tls:
        config["transport_socket"] = upstream_tls
    if http2 is not None:
        config["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPE}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": http2},
            }}
    return config


def tcp_proxy(upstream, tunnel_to=None):
    """Relays bytes to the cluster `upstream`; with `tunnel_to` ("ip:port") inside an HTTP/2 CONNECT for that authority."""
    config = {"@type": f"{TYPE}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": upstream, "cluster": upstream}
    if tunnel_to:
        config["tunneling_config"] = {"hostname": tunnel_to}
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config}


def http_proxy(upstream):
    """Routes every request to the cluster `upstream`, as a sidecar does without any rules; HTTP/1 and HTTP/2 are taken."""
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": upstream,
        "codec_type": "AUTO",
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{
            "name": upstream, "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": upstream, "timeout": "0s"}}],
        }]},
        "http_filters": [{"name": "envoy.filters.http.router",
                          "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router"}}],
    }}


def connect_terminator(deliveries):
    """Ends HBONE's CONNECT: `deliveries` maps an authority ("ip:port") to the cluster that gets the stream's bytes as a
    TCP connection. Any other authority, and any method but CONNECT, is answered 404."""
    hosts = [{
        "name": upstream,
        "domains": [authority],
        "routes": [{
            "match": {"connect_matcher": {}},
            # A tunnel lives as long as its connection: neither the 15 s of a request nor 5 idle minutes end it.
            "route": {"cluster": upstream, "timeout": "0s", "idle_timeout": "0s",
                      "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
        }],
    } for authority, upstream in deliveries.items()]
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": True, "max_concurrent_streams": HBONE_STREAMS},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [{"name": "envoy.filters.http.router",
                          "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router"}}],
    }}


def upstream_tls(credentials, peer, alpn=(), curves=()):
    """The client's side of mutual TLS 1.3; the server must show exactly the URI SAN `peer`. No SNI is sent."""
    return _tls("UpstreamTlsContext", credentials, peer, alpn, curves)


def downstream_tls(credentials, peer, alpn=(), curves=()):
    """The server's side of mutual TLS 1.3; the client must show exactly the URI SAN `peer`."""
    socket = _tls("DownstreamTlsContext", credentials, peer, alpn, curves)
    socket["typed_config"]["require_client_certificate"] = True
    return socket


def _tls(context, credentials, peer, alpn, curves):
    parameters = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
    if curves:
        parameters["ecdh_curves"] = list(curves)
    common = {
        "tls_params": parameters,
        "tls_certificates": [{"certificate_chain": {"filename": str(credentials.certificate)},
                              "private_key": {"filename": str(credentials.key)}}],
        "validation_context": {
            "trusted_ca": {"filename": str(credentials.root)},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    }
    if alpn:
        common["alpn_protocols"] = list(alpn)
    return {"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": f"{TYPE}.transport_sockets.tls.v3.{context}", "common_tls_context": common}}


def socket_address(address):
    host, port = address
    return {"socket_address": {"address": host, "port_value": port}}
