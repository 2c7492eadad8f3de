"""Redis or Valkey: copies of boards, limits, tickets, markers and replies. Nothing is decided here."""
