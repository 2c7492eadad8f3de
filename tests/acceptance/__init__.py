"""An action goes in over HTTP and comes out of a WebSocket, and a naive model that recounts it all."""
