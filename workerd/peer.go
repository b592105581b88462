package workerd

// Peer returns the token of the process with this id, for a connection that only the
// kernel knows the other end of: workerd adds no header to what opens a socket.
func (r *Runtime) Peer(pid int) (token string, ok bool) {
	found, ok := r.peers.Load(pid)
	if !ok {
		return "", false
	}
	return found.(string), true
}
