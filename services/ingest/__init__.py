"""Takes signals durably, and keeps the incidents they are about."""
