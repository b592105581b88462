package egress

import (
	"net"
	"syscall"
)

// peerKnown: the kernel tells who is at the other end of a unix socket.
const peerKnown = true

// peerOf returns the id of the process at the other end; 0: nobody knows.
func peerOf(c net.Conn) int {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if peer, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	if err != nil {
		return 0
	}
	return pid
}
