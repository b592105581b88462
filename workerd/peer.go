package workerd

// Peer returns the token of a running process by its id, as the kernel tells it of
// who is at the other end of a socket: for what workerd sends without a header.
func (r *Runtime) Peer(pid int) (token string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.processes {
		if p.pid == pid {
			return p.token, true
		}
	}
	return "", false
}
