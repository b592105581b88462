//go:build !linux

package egress

import "net"

// peerKnown: only Linux is asked.
const peerKnown = false

func peerOf(net.Conn) int { return 0 }
