"""From stored cells to tables, figures and one page."""
