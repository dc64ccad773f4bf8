#!/usr/bin/env python3
"""Asks a DNS server everything that it is to answer, with two resolvers that nobody here wrote: dnspython, over UDP and
TCP, and dig. All three must read the same answer, and it must be the expected one. An upstream of dnspython's making
stands behind the server and keeps what it is asked.

    dns_answers.py SERVER UPSTREAM      both as ADDRESS:PORT; prints how many answers were compared"""

import re
import socket
import subprocess
import sys
import threading

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

PATIENCE = 60
SOA = "mesh.internal. 5 IN SOA mesh.internal. hostmaster.mesh.internal. 1 3600 600 86400 5"
STORE = "store.default.mesh.internal."
V4, V6 = "240.240.0.77", "fdba:4e3e:5400::77"
PTR4 = "77.0.240.240.in-addr.arpa."
PTR6 = "7.7." + "0." * 14 + "0.0.0.0.0.0.4.5.e.3.e.4.a.b.d.f.ip6.arpa."

# (name, type, code, answers, authority, additional); what is None is not compared.
OURS = [
    (STORE, "A", "NOERROR", [f"{STORE} 30 IN A {V4}"], [], []),
    (STORE, "AAAA", "NOERROR", [f"{STORE} 30 IN AAAA {V6}"], [], []),
    ("store.mesh.internal.", "A", "NOERROR", [f"store.mesh.internal. 30 IN A {V4}"], [], []),
    ("store.", "A", "NOERROR", [f"store. 30 IN A {V4}"], [], []),
    ("store.default.", "AAAA", "NOERROR", [f"store.default. 30 IN AAAA {V6}"], [], []),
    ("store.default.svc.cluster.local.", "A", "NOERROR", [f"store.default.svc.cluster.local. 30 IN A {V4}"], [], []),
    (STORE, "MX", "NOERROR", [], [SOA], []),
    (STORE, "TXT", "NOERROR", [], [SOA], []),
    (STORE, "HTTPS", "NOERROR", [], [SOA], []),
    (STORE, "TYPE65280", "NOERROR", [], [SOA], []),
    (STORE, "ANY", "NOERROR", [f'{STORE} 30 IN HINFO "RFC8482" ""'], [], []),
    (STORE, "AXFR", "REFUSED", [], [], []),
    (f"_http._tcp.{STORE}", "SRV", "NOERROR",
     [f"_http._tcp.{STORE} 30 IN SRV 0 0 80 {STORE}"], [], [f"{STORE} 30 IN A {V4}", f"{STORE} 30 IN AAAA {V6}"]),
    (f"_9090._tcp.{STORE}", "SRV", "NOERROR",
     [f"_9090._tcp.{STORE} 30 IN SRV 0 0 9090 {STORE}"], [], [f"{STORE} 30 IN A {V4}", f"{STORE} 30 IN AAAA {V6}"]),
    (f"_web._tcp.{STORE}", "SRV", "NOERROR",
     [f"_web._tcp.{STORE} 30 IN SRV 0 0 80 {STORE}"], [], [f"{STORE} 30 IN A {V4}", f"{STORE} 30 IN AAAA {V6}"]),
    (f"_grpc._tcp.{STORE}", "SRV", "NXDOMAIN", [], [SOA], []),
    (f"_http._udp.{STORE}", "SRV", "NXDOMAIN", [], [SOA], []),
    (f"_tcp.{STORE}", "SRV", "NOERROR", [], [SOA], []),
    ("mesh.internal.", "SOA", "NOERROR", [SOA], [], []),
    ("mesh.internal.", "A", "NOERROR", [], [SOA], []),
    ("mesh.internal.", "NS", "NOERROR", [], [SOA], []),
    ("default.mesh.internal.", "A", "NOERROR", [], [SOA], []),
    ("nosuch.mesh.internal.", "A", "NXDOMAIN", [], [SOA], []),
    ("nosuch.mesh.internal.", "ANY", "NXDOMAIN", [], [SOA], []),
    ("a.b.c.d.mesh.internal.", "SRV", "NXDOMAIN", [], [SOA], []),
    (PTR4, "PTR", "NOERROR", [f"{PTR4} 30 IN PTR {STORE}"], [], []),
    (PTR6, "PTR", "NOERROR", [f"{PTR6} 30 IN PTR {STORE}"], [], []),
    ("78.0.240.240.in-addr.arpa.", "PTR", "NXDOMAIN", [], None, []),
    ("240.240.in-addr.arpa.", "PTR", "NOERROR", [], None, []),
]
THEIRS = [
    ("host.example.", "A", "NOERROR", ["host.example. 60 IN A 192.0.2.7"], [], []),
    ("HoSt.ExAmPlE.", "A", "NOERROR", ["HoSt.ExAmPlE. 60 IN A 192.0.2.7"], [], []),
    ("alias.example.", "A", "NOERROR",
     ["alias.example. 60 IN CNAME host.example.", "host.example. 60 IN A 192.0.2.7"], [], []),
    ("_s._tcp.example.", "SRV", "NOERROR", ["_s._tcp.example. 60 IN SRV 1 2 3 host.example."], [], []),
    ("host.example.", "TYPE65280", "NOERROR", ["host.example. 60 IN TYPE65280 \\# 3 010203"], [], []),
    ("7.2.0.192.in-addr.arpa.", "PTR", "NOERROR", ["7.2.0.192.in-addr.arpa. 60 IN PTR host.example."], [], []),
    ("none.example.", "A", "NXDOMAIN", [], ["example. 60 IN SOA ns.example. root.example. 7 1 2 3 4"], []),
    # Too large for a datagram of 1,232 bytes, and of 4 KB and more.
    ("large.example.", "TXT", "NOERROR", [f'large.example. 60 IN TXT "{i:02d}{"x" * 200}"' for i in range(10)], [], []),
    ("huge.example.", "TXT", "NOERROR", [f'huge.example. 60 IN TXT "{i:03d}{"x" * 250}"' for i in range(200)], [], []),
]
FAILING = [("rebind.example.", "A", "SERVFAIL"), ("silent.example.", "A", "SERVFAIL")]


class Upstream:
    """Answers what THEIRS expects, and forges beside it."""

    def __init__(self, address):
        self.asked = []
        self.answers = {(name.lower(), kind): (code, answers, authority) for name, kind, code, answers, authority, _ in THEIRS}
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(address)
        self.tcp = socket.create_server(address)
        self.forger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for loop in (self.datagrams, self.connections):
            threading.Thread(target=loop, daemon=True).start()

    def reply(self, wire, over_tcp):
        query = dns.message.from_wire(wire)
        name, kind = query.question[0].name.to_text().lower(), dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append((name, "tcp" if over_tcp else "udp"))
        if name.startswith("silent."):
            return None, None
        reply = dns.message.make_response(query, recursion_available=True)
        if name.startswith("rebind."):
            reply.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "240.240.0.77"))
            return query, reply
        code, answers, authority = self.answers.get((name, kind), ("NXDOMAIN", [], []))
        reply.set_rcode(dns.rcode.from_text(code))
        for section, lines in ((reply.answer, answers), (reply.authority, authority)):
            for line in lines:
                owner, ttl, _, rdtype, data = line.split(" ", 4)
                rrset = dns.rrset.from_text(owner, int(ttl), "IN", rdtype, data)
                same = [other for other in section if other.match(rrset.name, rrset.rdclass, rrset.rdtype, rrset.covers)]
                same[0].update(rrset) if same else section.append(rrset)
        return query, reply

    def datagrams(self):
        while True:
            wire, asker = self.udp.recvfrom(65535)
            query, reply = self.reply(wire, False)
            if reply is None:
                continue
            # Another id, another question, another port, and names that never end: all before the truth.
            forged = dns.message.make_response(query)
            forged.answer = [dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.66")]
            forged = forged.to_wire()
            self.udp.sendto(bytes([forged[0] ^ 1]) + forged[1:], asker)
            self.udp.sendto(forged[:12] + b"\x05wrong\x00" + forged[-30:], asker)
            self.forger.sendto(forged, asker)
            looping = wire[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + wire[12:12 + len(query.question[0].name.to_wire()) + 4]
            self.udp.sendto(looping + bytes([0xc0, len(looping)]) + b"\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x42", asker)
            limit = max(512, query.payload) if query.edns >= 0 else 512
            try:
                self.udp.sendto(reply.to_wire(max_size=limit), asker)
            except dns.exception.TooBig:
                short = dns.message.make_response(query, recursion_available=True)
                short.flags |= dns.flags.TC
                self.udp.sendto(short.to_wire(), asker)

    def connections(self):
        while True:
            threading.Thread(target=self.connection, args=(self.tcp.accept()[0],), daemon=True).start()

    def connection(self, stream):
        with stream, stream.makefile("rb") as reader:
            while len(head := reader.read(2)) == 2:
                query, reply = self.reply(reader.read(int.from_bytes(head, "big")), True)
                if reply is not None:
                    wire = reply.to_wire(max_size=65535)
                    stream.sendall(len(wire).to_bytes(2, "big") + wire)


def records(section):
    """Lines with an owner, a TTL and a single record each, in order of their text."""
    lines = []
    for rrset in section:
        for rdata in rrset:
            lines.append(f"{rrset.name} {rrset.ttl} IN {dns.rdatatype.to_text(rrset.rdtype)} {rdata.to_text()}")
    return sorted(lines)


def by_dnspython(server, name, kind, over_tcp):
    query = dns.message.make_query(name, kind, use_edns=0, payload=1232)
    ask = dns.query.tcp if over_tcp else dns.query.udp_with_fallback
    reply = ask(query, server[0], timeout=PATIENCE, port=server[1])
    reply = reply[0] if isinstance(reply, tuple) else reply
    assert reply.id == query.id and reply.flags & dns.flags.QR and reply.flags & dns.flags.RA, reply
    assert reply.edns == 0 or reply.rcode() == dns.rcode.REFUSED, f"{name} {kind}: no OPT record came back"
    # Letters as they were asked: what guards a resolver against forgeries (draft-vixie-dnsext-dns0x20).
    assert reply.question[0].name.to_text() == name, reply.question
    return dns.rcode.to_text(reply.rcode()), records(reply.answer), records(reply.authority), records(reply.additional)


def by_dig(server, name, kind):
    kind = ["-t", kind] if kind not in ("AXFR",) else ["-t", "AXFR"]
    command = ["dig", f"@{server[0]}", "-p", str(server[1]), "+nocookie", "+time=60", "+tries=1", "+noidnout", "+bufsize=1232",
               "+norrcomments", "-q", name, *kind]
    text = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 2).stdout
    code = re.search(r"status: (\w+)", text)
    sections = {"ANSWER": [], "AUTHORITY": [], "ADDITIONAL": []}
    here = None
    for line in text.splitlines():
        if header := re.match(r";; (\w+) SECTION:", line):
            here = sections.get(header[1])
        elif line and not line.startswith(";") and here is not None:
            owner, ttl, _, rdtype, data = re.split(r"\s+", line, maxsplit=4)
            here.append(f"{owner} {ttl} IN {rdtype} {data}")
    return (code[1] if code else "?", *(sorted(lines) for lines in sections.values()))


def same(found, expected, what):
    for value, wanted in zip(found, expected):
        if wanted is not None:
            wanted = sorted(normal(line) for line in wanted) if isinstance(wanted, list) else wanted
            value = sorted(normal(line) for line in value) if isinstance(value, list) else value
            assert value == wanted, f"{what}:\n  said     {value}\n  expected {wanted}"


def normal(line):
    """An owner's letters count only in the question, and dig writes an unknown type's bytes in capitals."""
    return line.lower()


def main():
    server, upstream = (address.rsplit(":", 1) for address in sys.argv[1:3])
    server, upstream = (server[0], int(server[1])), Upstream((upstream[0], int(upstream[1])))
    compared = 0
    for name, kind, *expected in OURS + THEIRS:
        if kind != "AXFR":
            for over_tcp in (False, True):
                same(by_dnspython(server, name, kind, over_tcp), expected, f"dnspython, {name} {kind}, tcp: {over_tcp}")
                compared += 1
            same(by_dig(server, name, kind), expected, f"dig, {name} {kind}")
        else:
            query = dns.message.make_query(name, "AXFR")
            assert dns.query.tcp(query, server[0], timeout=PATIENCE, port=server[1]).rcode() == dns.rcode.REFUSED
        compared += 1
    for name, kind, code in FAILING:
        same(by_dig(server, name, kind)[:1], [code], f"dig, {name} {kind}")
        compared += 1
    compared += odd_questions(server)

    leaked = [name for name, _ in upstream.asked if "mesh.internal" in name or "240.240" in name or "e.3.e.4" in name]
    assert not leaked, f"the upstream was asked for {leaked}"
    assert ("huge.example.", "tcp") in upstream.asked and ("huge.example.", "udp") in upstream.asked, upstream.asked
    print(f"{compared} answers compared")


def odd_questions(server):
    """What is no plain question: each is said to be none, and by the right code."""
    def ask(query):
        return dns.query.udp(query, server[0], timeout=PATIENCE, port=server[1], ignore_unexpected=True)

    plain = dns.message.make_query(STORE, "A")
    plain.use_edns(-1)
    reply = ask(plain)
    assert reply.edns == -1 and reply.flags & dns.flags.AA, "an OPT record that nobody asked for"
    version = dns.message.make_query(STORE, "A", use_edns=1)
    assert ask(version).rcode() == dns.rcode.BADVERS
    for name in ("version.bind.", STORE):
        chaos = dns.message.make_query(name, "TXT", rdclass=dns.rdataclass.CH)
        assert ask(chaos).rcode() == dns.rcode.REFUSED
    for opcode in (dns.opcode.NOTIFY, dns.opcode.UPDATE, dns.opcode.STATUS):
        other = dns.message.make_query(STORE, "A")
        wire = bytearray(other.to_wire())
        wire[2] = opcode << 3
        assert raw(server, bytes(wire))[3] & 15 == dns.rcode.NOTIMP, opcode
    two = bytearray(plain.to_wire())
    two[5] = 2
    two += two[12:]
    for broken in (bytes(two), plain.to_wire() + b"more", plain.to_wire()[:-3]):
        assert raw(server, broken)[3] & 15 == dns.rcode.FORMERR, broken
    mixed = dns.message.make_query("StOrE.DeFaUlT.mEsH.iNtErNaL.", "A")
    reply = ask(mixed)
    assert reply.question[0].name.to_text() == "StOrE.DeFaUlT.mEsH.iNtErNaL." and reply.answer[0][0].address == V4
    return 11


def raw(server, message):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(PATIENCE)
        asker.sendto(message, server)
        return asker.recv(65535)


main()
